#!/usr/bin/env python3
"""A GGUF archive in llama.cpp against its twin in `spinshard eval`: the same recipe as pack-quantized in groups of 32 with
fp16 scales, or a plain folder, holds the same numbers.

usage: gguf_perplexity.py --program build/release/spinshard --model DIR --work DIR --text FILE --llama DIR
                          [--window 512] [--windows 20] [--ranks 2] [-- words of quantize...]

--llama: a folder with lib/libllama.so and include/llama.h, ggml.h of one version. The reader is a small C program that is
compiled here: it takes our token ids, so that the two sides see the same windows, and compares llama.cpp's own tokenizer
with them. llama.cpp rounds inputs of Q4_0 and Q8_0 products to 8 bits in blocks of 32: the demand is 0.5 % of perplexity.
Exit code 1 where it or the tokens fail.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

from resumable import launcher, own_kernels

READER = r"""
#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char *text, void *arg) {
    (void)arg;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

/* reader MODEL.gguf IDS WINDOW WINDOWS TEXT IDS_OF_TEXT: IDS are int32; prints the mean nll, and whether the tokens of TEXT begin so. */
int main(int argc, char **argv) {
    const int window = atoi(argv[3]), windows = atoi(argv[4]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts = false; /* plain kernels: those of AMX fail on threads of OpenMP */
    struct llama_model *model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 1;
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = (uint32_t)window;
    cp.n_threads = cp.n_threads_batch = 2;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *ctx = llama_init_from_model(model, cp);
    const size_t n = (size_t)window * windows;
    llama_token *ids = malloc(n * sizeof *ids);
    FILE *f = fopen(argv[2], "rb");
    if (!ctx || fread(ids, sizeof *ids, n, f) != n) return 1;
    double sum = 0;
    for (int w = 0; w < windows; w++) {
        struct llama_batch b = llama_batch_init(window, 0, 1);
        b.n_tokens = window;
        for (int i = 0; i < window; i++) {
            b.token[i] = ids[w * window + i];
            b.pos[i] = i;
            b.n_seq_id[i] = 1;
            b.seq_id[i][0] = 0;
            b.logits[i] = 1;
        }
        llama_memory_clear(llama_get_memory(ctx), true);
        if (llama_decode(ctx, b)) return 1;
        for (int i = 0; i + 1 < window; i++) {
            const float *x = llama_get_logits_ith(ctx, i);
            double most = x[0], all = 0;
            for (int j = 1; j < n_vocab; j++) most = fmax(most, x[j]);
            for (int j = 0; j < n_vocab; j++) all += exp(x[j] - most);
            sum += most + log(all) - x[b.token[i + 1]];
        }
        llama_batch_free(b);
    }
    f = fopen(argv[5], "rb");
    char *text = malloc(1 << 24);
    const int len = (int)fread(text, 1, 1 << 24, f), room = len + 8;
    llama_token *own = malloc((size_t)room * sizeof *own);
    const int got = llama_tokenize(vocab, text, len, own, room, false, true);
    int same = 0;
    f = fopen(argv[6], "rb");
    llama_token *want = malloc((size_t)room * sizeof *want);
    const int n_want = (int)fread(want, sizeof *want, (size_t)room, f);
    while (same < got && same < n_want && own[same] == want[same]) same++;
    printf("{\"nll\": %.9g, \"tokens\": %d, \"ours\": %d, \"same\": %d}\n", sum / ((double)windows * (window - 1)), got, n_want, same);
    return 0;
}
"""

IDS = r"""
import array, json, sys
from tokenizers import Tokenizer
t = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
text = open(sys.argv[2], encoding="utf8", newline="").read()
window, windows, out = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
ids, plain, full = (t.encode(x, add_special_tokens=s).ids for x, s in ((text, False), ("a", False), ("a", True)))
prefix = full[:len(full) - len(plain)]
step = window - len(prefix)
cut = [i for w in range(windows) for i in prefix + ids[w * step:(w + 1) * step]]
array.array("i", cut).tofile(open(out, "wb"))
array.array("i", ids).tofile(open(out + ".text", "wb"))
"""


def run(command, **how):
    r = subprocess.run(command, capture_output=True, text=True, **how)
    if r.returncode:
        raise SystemExit(f"{' '.join(command)[:400]}\nexit code {r.returncode}\n{r.stderr[-3000:]}")
    return r.stdout


def quantize(a, name, more):
    out = os.path.join(a.work, name)
    shutil.rmtree(out, ignore_errors=True)
    words = ["quantize", "--quiet", "--model", a.model, "--out", out, "--set", "archive.name=m", *a.words, *more]
    run([*launcher(a.ranks), a.program, *words], env=own_kernels(1))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--program", "--model", "--work", "--text", "--llama"):
        p.add_argument(flag, required=True)
    for flag, value in (("--window", 512), ("--windows", 20), ("--ranks", 2)):
        p.add_argument(flag, type=int, default=value)
    p.add_argument("--python", default=sys.executable, help="one that has tokenizers")
    p.add_argument("words", nargs="*")
    a = p.parse_args()
    for name in ("program", "model", "work", "text", "llama"):
        setattr(a, name, os.path.abspath(getattr(a, name)))
    os.makedirs(a.work, exist_ok=True)
    ids, source, reader = (os.path.join(a.work, n) for n in ("ids", "reader.c", "reader"))
    with open(source, "w") as f:
        f.write(READER)
    lib = os.path.join(a.llama, "lib")
    run(["cc", "-O2", "-o", reader, source, "-I" + os.path.join(a.llama, "include"), "-L" + lib, "-Wl,-rpath," + lib,
         "-lllama", "-lggml", "-lggml-base", "-lm"])
    run([a.python, "-c", IDS, a.model, a.text, str(a.window), str(a.windows), ids])
    gguf = quantize(a, "gguf", ["--set", "archive.form=gguf"])
    whole = "weights.bits=16" in a.words
    twin = quantize(a, "twin", [] if whole else ["--set", "archive.form=pack-quantized", "--set", "weights.group=32", "--set",
                                                 "archive.dtype=fp16"])
    for tar in sorted(n for n in os.listdir(gguf) if n.endswith(".tar")):
        run(["tar", "-C", a.work, "-xf", os.path.join(gguf, tar)])
    folder = os.path.join(a.work, "m")
    first = sorted(n for n in os.listdir(folder) if n.endswith(".gguf"))[0]
    theirs = json.loads(run([reader, os.path.join(folder, first), ids, str(a.window), str(a.windows), a.text, ids + ".text"]))
    words = ["eval", "--json", "--quiet", "--model", twin, "--text", a.text, "--window", str(a.window), "--limit", str(a.windows),
             "--dtype", "fp32"]
    ours = json.loads(run([*launcher(a.ranks), a.program, *words], env=own_kernels(1)))["perplexity"][0]
    shutil.rmtree(folder)
    theirs["ppl"] = 2.718281828459045 ** theirs["nll"]
    ratio = theirs["ppl"] / ours["ppl"]
    print(f"llama.cpp {theirs['ppl']:.4f}, eval {ours['ppl']:.4f}, ratio {ratio:.5f}; tokens of the text: {theirs['tokens']} by "
          f"llama.cpp, {theirs['ours']} here, the first {theirs['same']} the same")
    sys.exit(abs(ratio - 1) > 0.005 or theirs["same"] < theirs["ours"] or ours["windows"] != a.windows)


if __name__ == "__main__":
    main()
