#!/usr/bin/env python3
"""GPTQ of llm-compressor on the CPU against ours: perplexity and time on the same model, tokens and groups. Resumable.

usage: peer_gptq.py --program build/release/spinshard --model DIR --calib FILE --text FILE --work DIR
                    --peer-python PYTHON_WITH_LLMCOMPRESSOR [--windows 48] [--window 1024] [--group 64] [--limits 20,40]
                    [--ranks 2] [--only MODEL/ROW]... [--models source,fused]

Models: `source`, as it is; `fused`, the same function with a seeded Hadamard R1 and R2 of ours folded into its weights,
in the source's type (`quantize` with weights.bits=16). Nothing is rotated by either side after that. Both sides get the same token ids: the calibration text tokenized once as a whole, no
begin-of-text, its first windows. Symmetric, 4 bits, groups, all linears but the head.

  llm-compressor   GPTQModifier with its defaults; time from the loaded model to the quantized one, nothing saved
  ours             recipe gptq-w4a16; time of the whole command, from the files to the verified archive
  ours, max        the same with the scale of the largest weight, as llm-compressor's observer takes it
  ours, gptaq      weights.method gptaq on the stream of quantized weights, as best-w4a16 has it

Perplexity of all of them by `spinshard eval` in bf16: of our archive, and of a plain folder with llm-compressor's
dequantized weights. Demands of each model, ours (the row `ours`): perplexity at most 0.5 % above theirs, time at most
theirs; exit code 1 where one fails. Each row is run once and kept in --work (peer_gptq.json). Both sides have as many
threads in all as there are ranks. Run it alone: times count.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from resumable import keep, kept, launcher, own_kernels

PEER = r"""
import importlib.metadata, json, sys, time, torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model, ids, window, windows, group, threads, out = *sys.argv[1:3], *map(int, sys.argv[3:7]), sys.argv[7]
torch.set_num_threads(threads)
ids = json.load(open(ids))
rows = [ids[i * window:(i + 1) * window] for i in range(windows)]
data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * window] * windows})
source = load_file(model + "/model.safetensors")
m = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
how = GPTQModifier(ignore=["lm_head"], config_groups={"group_0": {"targets": ["Linear"], "weights": {
    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}}})
start = time.time()
oneshot(model=m, dataset=data, recipe=how, max_seq_length=window, num_calibration_samples=windows)
seconds = time.time() - start
state, changed = {k: v.detach() for k, v in m.state_dict().items()}, 0
for k in source:
    if k.endswith("_proj.weight"):
        assert not torch.equal(state[k].float(), source[k].float()), k
        source[k], changed = state[k].to(source[k].dtype).contiguous(), changed + 1
save_file(source, out + "/model.safetensors", metadata={"format": "pt"})
args = m.model.layers[0].mlp.down_proj.quantization_scheme.weights
version = importlib.metadata.version
print(json.dumps({"seconds": seconds, "linears": changed, "how": f"llm-compressor {version('llmcompressor')}, torch "
                  f"{torch.__version__}, {threads} threads: actorder {args.actorder.value}, observer {args.observer}, "
                  f"damping {how.dampening_frac}, blocks of {how.block_size}, {source[k].dtype}".replace("torch.", "")}))
"""

IDS = r"""
import json, sys
from tokenizers import Tokenizer
t = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
ids = t.encode(open(sys.argv[2], encoding="utf8").read(), add_special_tokens=False).ids
json.dump(ids[:int(sys.argv[3])], open(sys.argv[4], "w"))
"""

OURS = {
    "ours": [],
    "ours, max": ["--set", "weights.scale=max"],
    "ours, gptaq": ["--set", "weights.method=gptaq", "--set", "weights.stream=quantized"],
}
MARGIN = 1.005


def run(a, command, threads):
    env = {**own_kernels(threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    r = subprocess.run(command, env=env, capture_output=True, text=True, cwd=a.work)
    if r.returncode:
        raise SystemExit(f"{' '.join(command)[:400]}\nexit code {r.returncode}\n{r.stderr[-3000:]}")
    return r.stdout


def ours(a, args):
    return run(a, [*launcher(a.ranks), a.program, *args], 1)


def small_files(a, to):
    os.makedirs(to)
    for f in os.listdir(a.model):
        if not f.endswith(".safetensors"):
            shutil.copy(os.path.join(a.model, f), to)


def folder(a, model):
    """The model that both sides quantize."""
    if model == "source":
        return a.model
    to = os.path.join(a.work, "fused")
    if not os.path.exists(os.path.join(to, "config.json")):
        out = os.path.join(a.work, "rotated")
        shutil.rmtree(to, ignore_errors=True)
        ours(a, ["quantize", "--quiet", "--force", "--model", a.model, "--out", out, "--set", "weights.bits=16", "--set",
                 "archive.name=fused", "--set", "archive.shard_bytes=1T"])
        (tar,) = (n for n in os.listdir(out) if n.endswith(".tar"))
        subprocess.run(["tar", "-C", a.work, "-xf", os.path.join(out, tar)], check=True)
        os.rename(os.path.join(to, "model-00001-of-00001.safetensors"), os.path.join(to, "model.safetensors"))
        os.remove(os.path.join(to, "model.safetensors.index.json"))
        shutil.rmtree(out)
    return to


def perplexities(a, path):
    got = {}
    for limit in a.limits:
        words = ["eval", "--json", "--quiet", "--model", path, "--text", a.text, "--window", str(a.window), "--limit", str(limit)]
        got[str(limit)] = json.loads(ours(a, words))["perplexity"][0]["ppl"]
    return got


def theirs_row(a, model):
    out = os.path.join(a.work, "theirs")
    shutil.rmtree(out, ignore_errors=True)
    small_files(a, out)
    shutil.copy(os.path.join(model, "config.json"), out)
    command = [a.peer_python, "-c", PEER, model, a.ids, str(a.window), str(a.windows), str(a.group), str(a.ranks), out]
    start = time.time()
    got = json.loads(run(a, command, a.ranks).splitlines()[-1])
    got["command_seconds"] = time.time() - start
    got["ppl"] = perplexities(a, out)
    shutil.rmtree(out)
    return got


def our_row(a, model, more):
    out = os.path.join(a.work, "ours")
    shutil.rmtree(out, ignore_errors=True)
    words = ["quantize", "--quiet", "--model", model, "--out", out, "--recipe", "gptq-w4a16", "--calib-ids", a.ids, "--set",
             f"weights.group={a.group}", "--set", f"calib.windows={a.windows}", "--set", f"calib.window={a.window}", *more]
    start = time.time()
    ours(a, words)
    got = {"seconds": time.time() - start, "ppl": perplexities(a, out)}
    with open(os.path.join(out, "events.jsonl")) as f:
        layers = [e for e in map(json.loads, f) if e["event"] == "errors"]
    got["layers_seconds"] = sum(e["seconds"] for e in layers)
    got["how"] = f"ours, {a.ranks} ranks x 1 thread: act_order (static groups), damping 0.01, blocks of 128" + \
        "".join(", " + s for s in more[1::2])
    shutil.rmtree(out)
    return got


def table(a, results):
    limits = [str(n) for n in a.limits]
    failed = False
    print("| model | | " + " | ".join(f"windows 1 to {n}" for n in limits) + " | seconds |\n|---" + "|---" * (len(limits) + 2) + "|")
    for key, r in results.items():
        model, row = key.split("/", 1)
        seconds = f"{r['seconds']:.0f}" if "seconds" in r else ""
        print(f"| {model} | {row} | " + " | ".join(f"{r['ppl'][n]:.3f}" for n in limits) + f" | {seconds} |")
    for r in dict.fromkeys(r["how"] for r in results.values() if "how" in r):
        print(r)
    for model in a.models:
        us, they = results.get(model + "/ours"), results.get(model + "/llm-compressor")
        if not us or not they:
            continue
        ppl = max(us["ppl"][n] / they["ppl"][n] for n in limits)
        print(f"{model}: perplexity {ppl:.4f} of theirs (at most {MARGIN}), time {us['seconds'] / they['seconds']:.2f} (at most 1)")
        failed |= ppl > MARGIN or us["seconds"] > they["seconds"]
    return failed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--program", "--model", "--calib", "--text", "--work", "--peer-python"):
        p.add_argument(flag, required=True)
    for flag, value in (("--windows", 48), ("--window", 1024), ("--group", 64), ("--ranks", 2)):
        p.add_argument(flag, type=int, default=value)
    p.add_argument("--limits", default="20,40")
    p.add_argument("--models", default="source,fused")
    p.add_argument("--only", action="append")
    a = p.parse_args()
    a.limits, a.models = [int(n) for n in a.limits.split(",")], a.models.split(",")
    for name in ("program", "model", "calib", "text", "work"):
        setattr(a, name, os.path.abspath(getattr(a, name)))
    os.makedirs(a.work, exist_ok=True)
    a.ids = os.path.join(a.work, "ids.json")
    run(a, [a.peer_python, "-c", IDS, a.model, a.calib, str(a.windows * a.window), a.ids], 1)
    path = os.path.join(a.work, "peer_gptq.json")
    results = kept(path) or {}
    for model in a.models:
        rows = {"16 bit": lambda m: {"ppl": perplexities(a, m)}, "llm-compressor": lambda m: theirs_row(a, m)}
        rows.update({row: lambda m, more=more: our_row(a, m, more) for row, more in OURS.items()})
        for row, make in rows.items():
            key = f"{model}/{row}"
            if key in results or (a.only and key not in a.only):
                continue
            results[key] = make(folder(a, model))
            keep(path, results)
            print(key, json.dumps(results[key]), flush=True)
    sys.exit(table(a, results))


if __name__ == "__main__":
    main()
