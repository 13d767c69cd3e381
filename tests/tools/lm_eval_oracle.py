#!/usr/bin/env python3
"""Zero-shot questions through lm-evaluation-harness's Hugging Face backend in float32, and the comparison with the file that
`spinshard eval --items` wrote: item by item, the choice by likelihood and by likelihood per character.

usage: lm_eval_oracle.py MODEL ITEMS TASK.jsonl... [--least 0.995]     needs lm_eval, torch, transformers

The task files are those of bench/tasks.py. Prompts were written there; this holds tokens, likelihoods and choices.
"""
import argparse
import json
import os
import sys


def options(item):
    """(what stands before, what is scored) of each option, as the harness joins them."""
    if "choices" in item:
        return [(item["context"], " " + c) for c in item["choices"]]
    if "contexts" in item:
        return [(c, " " + item["continuation"]) for c in item["contexts"]]
    return [(item["context"], " " + item["continuation"])]


def best(values):
    return max(range(len(values)), key=lambda k: values[k])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("items")
    a.add_argument("tasks", nargs="+")
    a.add_argument("--least", type=float, default=0.995)
    a = a.parse_args()
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    model = HFLM(pretrained=a.model, device="cpu", dtype="float32", batch_size=8)
    with open(a.items, encoding="utf-8") as f:
        ours = [json.loads(line) for line in f]
    good = True
    for path in a.tasks:
        name = os.path.basename(path).rsplit(".", 1)[0]
        mine = [o for o in ours if o["task"] == name]
        with open(path, encoding="utf-8") as f:
            items = [json.loads(line) for line in f][:len(mine)]
        asked = [(i, pair) for i, item in enumerate(items) for pair in options(item)]
        answers = model.loglikelihood([Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=k)
                                       for k, (_, pair) in enumerate(asked)], disable_tqdm=True)
        same = same_norm = right = right_ours = 0
        worst = 0.0
        for i, (item, o) in enumerate(zip(items, mine)):
            got = [v for (j, _), (v, _) in zip(asked, answers) if j == i]
            worst = max(worst, max(abs(x - y) / max(1, abs(x)) for x, y in zip(got, o["loglikelihood"])))
            sizes = [len(c) for c in item.get("choices", [item.get("continuation", "")] * len(got))]
            same += best(got) == best(o["loglikelihood"])
            same_norm += best([v / n for v, n in zip(got, sizes)]) == best([v / n for v, n in zip(o["loglikelihood"], o["characters"])])
            right += best(got) == item.get("gold", 0)
            right_ours += best(o["loglikelihood"]) == item.get("gold", 0)
        n = len(items)
        print(f"{name}: {n} items; accuracy {right / n:.4f} by lm_eval {lm_eval.__version__}, {right_ours / n:.4f} here; same choice "
              f"{same / n:.4f}, per character {same_norm / n:.4f}; likelihoods differ by {worst:.1e} at most", flush=True)
        good = good and min(same, same_norm) >= a.least * n
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
