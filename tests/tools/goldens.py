#!/usr/bin/env python3
"""The fp64 reference behind tests/data/goldens: a plain LLaMA in PyTorch that shares no code and no derivation with
the program. Needs torch, numpy, safetensors and tokenizers (tests/requirements.txt).

usage: goldens.py logits          writes goldens/made (a small model) and goldens/logits.json
       goldens.py learning        writes goldens/learning.safetensors and goldens/learning.json
       goldens.py step            writes goldens/step.safetensors
       goldens.py compare FOLDER MODEL     the learning numbers of another model against a file of the same keys
       goldens.py transformers    the loss of the two models by transformers in float32, against logits.json

The gradients of rotations are taken the long way: the rotations are multiplied into the weights, every quantizer
stands in the rotated basis, and automatic differentiation goes through all of it (straight through the rounding,
scales and zero points held constant). The program never rotates a weight while it learns.
"""
import json
import math
import os
import sys

import numpy
import torch
from make_model import make
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
GOLDENS = os.path.join(DATA, "goldens")
STORIES = os.path.join(DATA, "stories260K")
MADE = os.path.join(GOLDENS, "made")
MADE_FLAGS = ["--seed", 11, "--hidden", 48, "--intermediate", 80, "--layers", 2, "--heads", 6, "--kv-heads", 2,
              "--head-dim", 12, "--dtype", "BF16", "--biases", "--untied"]
MADE_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64}
TOKENS, STEPS, LR, SCHEDULE = 64, 4, 1.5, 100
TIE = 2e-6  # a start point is taken only if every quotient of its first pass is this far from a rounding tie

torch.set_default_dtype(torch.float64)
nearest_tie = 1.0


def frequencies(c):
    """Angle per position of each channel pair; the rule of Llama 3 stretches the long wavelengths."""
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    f = [c["rope_theta"] ** (-2 * i / d) for i in range(d // 2)]
    s = c.get("rope_scaling")
    if s:
        old = s["original_max_position_embeddings"]
        for i, w in enumerate(f):
            turns = old * w / (2 * math.pi)  # rotations within the length the model was first trained for
            share = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
            share = min(1.0, max(0.0, share))
            f[i] = (1 - share) * w / s["factor"] + share * w
    return torch.tensor(f)


def quantized(x, bits, zero):
    """Asymmetric, a scale per last axis; the gradient passes through. zero: the range is widened to hold 0."""
    global nearest_tie
    if bits >= 16:
        return x
    hi, lo = x.detach().amax(-1, keepdim=True), x.detach().amin(-1, keepdim=True)
    if zero:
        hi, lo = hi.clamp(min=0), lo.clamp(max=0)
    scale = torch.where(hi == lo, torch.ones_like(hi), (hi - lo) / (2 ** bits - 1))
    shift = torch.round(-lo / scale)
    quotient = x.detach() / scale
    for q in (quotient, -lo / scale):
        nearest_tie = min(nearest_tie, ((q - q.floor()) - 0.5).abs().min().item())
    codes = torch.clamp(torch.round(quotient) + shift, 0, 2 ** bits - 1)
    return x + ((codes - shift) * scale - x.detach())


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf8") as f:
            self.c = c = json.load(f)
        w = {k: v.double() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
        w.setdefault("model.embed_tokens.weight", w.get("lm_head.weight"))
        w.setdefault("lm_head.weight", w["model.embed_tokens.weight"])
        self.w = w
        self.n, self.heads, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.d = c.get("head_dim") or self.n // self.heads
        self.layers, self.ffn = c["num_hidden_layers"], c["intermediate_size"]

    def identity(self):
        return {"R1": torch.eye(self.n), "R2": torch.eye(self.d).repeat(self.layers, 1, 1),
                "R3": torch.eye(self.d), "R4": torch.eye(self.ffn)}

    def logits(self, ids, r, act=16, cache=16):
        """Logits [tokens, vocab] of one sequence, everything in the rotated basis."""
        w, R1 = self.w, r["R1"]
        n_tokens = len(ids)
        angle = torch.outer(torch.arange(n_tokens).double(), frequencies(self.c))
        cos, sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()
        mask = torch.full((n_tokens, n_tokens), -math.inf).triu(1)

        def turned(y):
            half = self.d // 2
            return y * cos + torch.cat([-y[..., half:], y[..., :half]], -1) * sin

        def norm(y):
            return y / torch.sqrt((y * y).mean(-1, keepdim=True) + self.c["rms_norm_eps"])

        x = w["model.embed_tokens.weight"][ids] @ R1
        for i in range(self.layers):
            p, R2 = f"model.layers.{i}.", r["R2"][i]

            def bias(name, p=p):
                return w.get(p + name + ".bias", torch.zeros(()))

            gain = w[p + "input_layernorm.weight"]
            h = quantized(norm(x), act, True)
            q, k, v = (h @ (w[f"{p}self_attn.{a}_proj.weight"] * gain @ R1).T + bias(f"self_attn.{a}_proj")
                       for a in "qkv")
            q, k, v = (y.view(n_tokens, -1, self.d).transpose(0, 1) for y in (q, k, v))
            q, k = turned(q) @ r["R3"], quantized(turned(k) @ r["R3"], cache, True)
            v = quantized(v @ R2, cache, False)
            k, v = (y.repeat_interleave(self.heads // self.kv, 0) for y in (k, v))
            o = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(self.d) + mask, -1) @ v
            o = quantized(o, act, False).transpose(0, 1)  # [tokens, heads, head_dim], a scale per head
            wo = w[p + "self_attn.o_proj.weight"].view(self.n, self.heads, self.d) @ R2
            x = x + (o.reshape(n_tokens, -1) @ wo.reshape(self.n, -1).T + bias("self_attn.o_proj")) @ R1
            gain = w[p + "post_attention_layernorm.weight"]
            h = quantized(norm(x), act, True)
            gate, up = (h @ (w[f"{p}mlp.{a}_proj.weight"] * gain @ R1).T + bias(f"mlp.{a}_proj")
                        for a in ("gate", "up"))
            y = quantized((gate * torch.sigmoid(gate) * up) @ r["R4"], act, True)
            x = x + (y @ (w[p + "mlp.down_proj.weight"] @ r["R4"]).T + bias("mlp.down_proj")) @ R1
        return norm(x) @ (w["lm_head.weight"] * w["model.norm.weight"] @ R1).T

    def nll(self, ids, r=None, act=16, cache=16):
        """Mean negative log likelihood of tokens 2 to the last, and the logits."""
        logits = self.logits(ids, r or self.identity(), act, cache)
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:]), logits


def windows(text, size):
    """The whole text as one sequence of tokens, cut into windows of BOS and size - 1 tokens; the rest is dropped."""
    ids = Tokenizer.from_file(os.path.join(STORIES, "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return [torch.tensor([1] + ids[i:i + size - 1]) for i in range(0, len(ids) - size + 2, size - 1)]


def text():
    with open(os.path.join(DATA, "stories.txt"), encoding="utf8", newline="") as f:
        return f.read()


@torch.no_grad()
def logits():
    make(MADE, *MADE_FLAGS)
    os.remove(os.path.join(MADE, "tokenizer.json"))  # that of stories260K serves
    os.remove(os.path.join(MADE, "tokenizer_config.json"))
    path = os.path.join(MADE, "config.json")
    with open(path, encoding="utf8") as f:
        config = {**json.load(f), "rope_scaling": MADE_ROPE}
    with open(path, "w", encoding="utf8") as f:
        json.dump(config, f, indent=2)
    out = {}
    for name, folder in (("stories260K", STORIES), ("goldens/made", MADE)):
        m, cut = Model(folder), windows(text(), 256)
        ids = cut[0][:TOKENS]
        nll, all_logits = m.nll(ids)
        last = all_logits[-1]
        top = torch.topk(last, 10)
        total = sum(m.nll(w)[0].item() * (len(w) - 1) for w in cut)
        count = sum(len(w) - 1 for w in cut)
        out[name] = {"ids": ids.tolist(), "nll_nat_per_token": nll.item(),
                     "last_top10": [[i, v] for i, v in zip(top.indices.tolist(), top.values.tolist())],
                     "last_logit_sum": last.sum().item(), "last_logit_l2": last.norm().item(),
                     "text": {"window": 256, "windows": len(cut), "tokens": count, "ppl": math.exp(total / count)}}
    with open(os.path.join(GOLDENS, "logits.json"), "w", encoding="utf8") as f:
        json.dump(out, f, indent=1)


def orthogonal(rng, n):
    q, r = numpy.linalg.qr(rng.standard_normal((n, n)))
    return torch.tensor(q * numpy.sign(numpy.diag(r)))


def cayley_step(R, Wd, lr):
    """R Cayley(alpha Wd), and alpha: the step of the published optimiser, capped by the largest column sum."""
    alpha = min(1 / (Wd.abs().sum(0).max().item() + 1e-8), lr)
    eye = torch.eye(len(R))
    return R @ torch.linalg.solve(eye - alpha / 2 * Wd, eye + alpha / 2 * Wd), alpha


def skew(R, G):
    p = R.transpose(-1, -2) @ G
    return p - p.transpose(-1, -2)


def learn(model, start, ids, act, cache):
    """Four steps of the published optimiser on one window. Loss and alphas of each, skew gradients of the first."""
    R1, R2 = start["R1"], start["R2"]
    first, told = None, []
    for i in range(STEPS):
        R1, R2 = R1.detach().requires_grad_(), R2.detach().requires_grad_()
        loss, _ = model.nll(ids, {**start, "R1": R1, "R2": R2}, act, cache)
        loss.backward()
        s1, s2 = skew(R1, R1.grad).detach(), skew(R2, R2.grad).detach()
        first = first or (s1, s2, nearest_tie)
        lr = LR * (1 + math.cos(math.pi * i / SCHEDULE)) / 2
        R1, a1 = cayley_step(R1.detach(), -s1 / 2, lr)
        steps = [cayley_step(R, -s / 2, lr) for R, s in zip(R2.detach(), s2)]
        R2 = torch.stack([s[0] for s in steps])
        told.append({"loss": loss.item(), "lr": lr, "alpha_R1": a1, "alpha_R2": [s[1] for s in steps]})
    return first, (R1, R2), told


SETTINGS = {"a4kv16": (4, 16), "a4kv4": (4, 4)}


def learning():
    global nearest_tie
    m, ids = Model(STORIES), windows(text(), TOKENS)[0]
    for seed in range(100):
        rng = numpy.random.default_rng(seed)
        start = {"R1": orthogonal(rng, m.n), "R2": torch.stack([orthogonal(rng, m.d) for _ in range(m.layers)]),
                 "R3": orthogonal(rng, m.d), "R4": orthogonal(rng, m.ffn)}
        out = {"ids": ids, "R1_0": start["R1"], "R2_0": start["R2"], "R3": start["R3"], "R4": start["R4"]}
        steps = {"seed": seed}
        for name, (act, cache) in SETTINGS.items():
            nearest_tie = 1.0
            (s1, s2, tie), (R1, R2), told = learn(m, start, ids, act, cache)
            print(f"seed {seed}, {name}: nearest tie of the first pass {tie:.2g}, loss {told[0]['loss']:.6f}")
            if tie < TIE:
                break
            out |= {f"{name}.skew_R1": s1, f"{name}.skew_R2": s2, f"{name}.R1_4": R1, f"{name}.R2_4": R2}
            steps[name] = told
        else:
            save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(GOLDENS, "learning.safetensors"))
            with open(os.path.join(GOLDENS, "learning.json"), "w", encoding="utf8") as f:
                json.dump(steps, f, indent=1)
            return
    sys.exit("every start point has a tie")


def step():
    """Single steps where the cap binds and where it does not."""
    out = {}
    for i, (n, size) in enumerate(((8, 0.05), (48, 0.02), (64, 2.0))):
        rng = numpy.random.default_rng(100 + i)
        a = torch.tensor(rng.standard_normal((n, n))) * size
        R, Wd = orthogonal(rng, n), (a - a.T) / 2
        nxt, alpha = cayley_step(R, Wd, LR)
        out |= {f"case{i}.R": R, f"case{i}.Wd": Wd, f"case{i}.lr": torch.tensor([LR]),
                f"case{i}.alpha": torch.tensor([alpha]), f"case{i}.R_next": nxt}
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(GOLDENS, "step.safetensors"))


def compare(folder, model):
    want = load_file(os.path.join(folder, os.path.basename(model) + ".safetensors"))
    start = {"R1": want["R1_0"], "R2": want["R2_0"], "R3": want["R3"], "R4": want["R4"]}
    for name, (act, cache) in SETTINGS.items():
        (s1, s2, _), (R1, R2), _ = learn(Model(model), start, want["ids"], act, cache)
        for key, got in (("skew_R1", s1), ("skew_R2", s2), ("R1_4", R1), ("R2_4", R2)):
            w = want[f"{name}.{key}"]
            print(f"{name} {key}: off by {((got - w).norm() / w.norm()).item():.2g}")


def against_transformers():
    from transformers import AutoModelForCausalLM
    with open(os.path.join(GOLDENS, "logits.json"), encoding="utf8") as f:
        for name, want in json.load(f).items():
            torch.set_default_dtype(torch.float32)
            m = AutoModelForCausalLM.from_pretrained(os.path.join(DATA, name), dtype=torch.float32).eval()
            ids = torch.tensor([want["ids"]])
            with torch.no_grad():
                got = torch.nn.functional.cross_entropy(m(ids).logits[0, :-1].double(), ids[0, 1:]).item()
            print(f"{name}: {got!r} by transformers, off by {abs(got / want['nll_nat_per_token'] - 1):.2g}")


if __name__ == "__main__":
    commands = {"logits": logits, "learning": learning, "step": step, "compare": compare,
                "transformers": against_transformers}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
