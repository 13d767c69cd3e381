#!/usr/bin/env python3
"""The table at the end of jobs/demo.sh, from the JSON that `spinshard eval --json` wrote.

usage: demo_table.py FOLDER SOURCE     FOLDER holds NAME.json, NAME-a4.json and NAME/*.tar
"""
import glob
import json
import os
import sys

ROWS = (("source", "full precision"), ("plain", "INT4, nothing rotated"),
        ("hadamard", "INT4, random Hadamard"), ("learned", "INT4, learned, scales, GPTQ"))


def perplexity(path):
    try:
        with open(path, encoding="utf-8") as f:
            ppl = json.load(f)["perplexity"][0]["ppl"]
    except FileNotFoundError:
        return "-"
    return f"{ppl:.2f}" if ppl < 1000 else f"{ppl:.0f}"


def megabytes(pattern):
    return f"{sum(map(os.path.getsize, glob.glob(pattern))) / 2**20:.1f} MiB"


def main(folder, source):
    print(f"{'':<28}{'size':>12}{'W4A16':>14}{'W4A4KV4':>14}")
    for name, title in ROWS:
        files = os.path.join(source, "*.safetensors") if name == "source" else os.path.join(folder, name, "*.tar")
        print(f"{title:<28}{megabytes(files):>12}"
              f"{perplexity(f'{folder}/{name}.json'):>14}{perplexity(f'{folder}/{name}-a4.json'):>14}")
    print("Perplexity. W4A16: weights alone at 4 bits; W4A4KV4: activations, keys and values too, while running.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
