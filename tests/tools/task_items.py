"""Zero-shot questions through another program, beside the file that `spinshard eval --items` wrote: item by item, the choice by
likelihood and by likelihood per character; of a word to be told (LAMBADA), whether every token is the likeliest."""
import argparse
import json
import os
import sys


def options(item):
    """(beginning, end) of each option; jobs/eval_tasks.h says how they are joined."""
    if "query" in item:
        return [(item["query"].rstrip(" \t\r\n") + "\nAnswer:", c) for c in item["choices"]]
    if "choices" in item:
        return [(item["context"], c) for c in item["choices"]]
    return [(c, item["continuation"]) for c in item.get("contexts", [item.get("context")])]


def best(values):
    return max(range(len(values)), key=lambda k: values[k])


def judge(item, values, exact, characters):
    """What is chosen by likelihood, and per character; and what is right."""
    if "gold" not in item:
        return exact, exact, True
    return best(values), best([v / n for v, n in zip(values, characters)]), item["gold"]


def main(doc, load):
    """load(folder): the name of the other program, and its function of pairs that gives (likelihood, every token is the
    likeliest) of each."""
    a = argparse.ArgumentParser(description=doc)
    a.add_argument("model")
    a.add_argument("items")
    a.add_argument("tasks", nargs="+")
    a.add_argument("--least", type=float, default=0.995)
    a = a.parse_args()
    name_of_it, answer = load(a.model)
    with open(a.items, encoding="utf-8") as f:
        ours = [json.loads(line) for line in f]
    good = True
    for path in a.tasks:
        name = os.path.basename(path).rsplit(".", 1)[0]
        mine = [o for o in ours if o["task"] == name]
        if not mine:
            sys.exit(f"{a.items} has no items of {name}")
        with open(path, encoding="utf-8") as f:
            items = [json.loads(line) for line in f][:len(mine)]
        answers = iter(answer([pair for item in items for pair in options(item)]))
        same = same_norm = right = right_ours = 0
        worst = 0.0
        for item, o in zip(items, mine):
            got = [next(answers) for _ in options(item)]
            values, sizes = [v for v, _ in got], [len(end) for _, end in options(item)]
            worst = max(worst, max(abs(x - y) / max(1, abs(x)) for x, y in zip(values, o["loglikelihood"])))
            theirs, theirs_norm, gold = judge(item, values, all(hit for _, hit in got), sizes)
            here, here_norm, _ = judge(item, o["loglikelihood"], o.get("exact"), o.get("characters"))
            same += theirs == here
            same_norm += theirs_norm == here_norm
            right += theirs == gold
            right_ours += here == gold
        n = len(items)
        print(f"{name}: {n} items; accuracy {right / n:.4f} by {name_of_it}, {right_ours / n:.4f} here; same choice "
              f"{same / n:.4f}, per character {same_norm / n:.4f}; likelihoods differ by {worst:.1e} at most", flush=True)
        good = good and min(same, same_norm) >= a.least * n
    sys.exit(0 if good else 1)
