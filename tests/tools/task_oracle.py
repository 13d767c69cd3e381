#!/usr/bin/env python3
"""Zero-shot questions through transformers, on the prompts of jobs/eval_tasks.h, and the comparison with the file
that `spinshard eval --items` wrote: item by item, by likelihood and by likelihood per character.

usage: task_oracle.py MODEL ITEMS TASK.jsonl... [--least 0.995]     needs torch and transformers
"""
import argparse
import json
import os
import sys

ENDS = " \t\r\n"


def options(item):
    """(beginning, end) of each option."""
    if "choices" in item:
        return [(item["query"].rstrip(ENDS) + "\nAnswer:", c) for c in item["choices"]]
    if "contexts" in item:
        return [(c.rstrip(ENDS), item["continuation"]) for c in item["contexts"]]
    return [(item["context"].rstrip(ENDS), item["continuation"])]


def encode(tokenizer, begin, end):
    whole = begin + ("" if end.startswith(" ") else " ") + end
    n = len(tokenizer.encode(begin, add_special_tokens=False).ids)
    ids = tokenizer.encode(whole, add_special_tokens=False).ids
    empty = tokenizer.encode("").ids  # what stands in front of each text
    n = max(min(n, len(ids) - 1), 0 if empty else 1)
    return empty + ids, len(empty) + n


def likelihood(model, ids, first):
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, first - 1 : -1].double()
    target = torch.tensor(ids[first:])
    p = torch.log_softmax(logits, -1)[range(len(target)), target]
    return float(p.sum()), bool((logits.argmax(-1) == target).all())


def choice(values):
    return max(range(len(values)), key=lambda k: values[k])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("items")
    a.add_argument("tasks", nargs="+")
    a.add_argument("--least", type=float, default=0.995)
    a = a.parse_args()
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    with open(a.items, encoding="utf-8") as f:
        ours = [json.loads(line) for line in f]
    good = True
    for path in a.tasks:
        name = os.path.basename(path).rsplit(".", 1)[0]
        with open(path, encoding="utf-8") as f:
            items = [json.loads(line) for line in f]
        mine = [o for o in ours if o["task"] == name]
        if not mine:
            sys.exit(f"{a.items} has no items of {name}")
        same = same_norm = right = right_ours = 0
        worst = 0.0
        for o, item in zip(mine, items):
            got, ends, exact = [], [], True
            for begin, end in options(item):
                value, hit = likelihood(model, *encode(tokenizer, begin, end))
                got.append(value)
                ends.append(len(end))
                exact = exact and hit
            worst = max(worst, max(abs(x - y) / max(1, abs(x)) for x, y in zip(got, o["loglikelihood"])))
            if "gold" in item:
                norm = choice([v / n for v, n in zip(got, ends)])
                same += choice(got) == choice(o["loglikelihood"])
                same_norm += norm == choice([v / n for v, n in zip(o["loglikelihood"], o["characters"])])
                right += choice(got) == item["gold"]
                right_ours += choice(o["loglikelihood"]) == item["gold"]
            else:
                same += exact == o["exact"]
                same_norm += exact == o["exact"]
                right += exact
                right_ours += o["exact"]
        n = len(mine)
        print(f"{name}: {n} items; accuracy {right / n:.4f} by transformers, {right_ours / n:.4f} here; same choice "
              f"{same / n:.4f}, per character {same_norm / n:.4f}; likelihoods differ by {worst:.1e} at most", flush=True)
        good = good and min(same, same_norm) >= a.least * n
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
