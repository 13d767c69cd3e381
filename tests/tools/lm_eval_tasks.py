#!/usr/bin/env python3
"""Tasks of lm-evaluation-harness through its Hugging Face backend in float32, as local yaml tasks: the harness's own task file,
prompts and metrics, with a local file in place of its data set. Beside it what `spinshard eval --items` wrote for the prompts that
bench/tasks.py made of the same file. So prompts, tokens, likelihoods, choices and accuracies are the harness's; lm_eval_oracle.py
compares likelihoods alone.

usage: lm_eval_tasks.py MODEL ITEMS NAME=DOCUMENTS.jsonl... [--limit N] [--least 0.995]     needs lm_eval, datasets, torch
NAME: a task of the harness with two or more choices, such as piqa arc_easy boolq winogrande; ITEMS has it under the same name.
"""
import argparse
import json
import os
import sys
import tempfile

import task_items

LOCAL = """include: {path}
task: local_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{validation: {documents}}}}}
training_split: null
validation_split: validation
test_split: null
"""


def task_file(name):
    """The harness's yaml of a task."""
    import lm_eval

    folder = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
    for path, _, files in os.walk(folder):
        for file in files:
            full = os.path.join(path, file)
            if file.endswith(".yaml"):
                with open(full, encoding="utf-8") as f:
                    if f"\ntask: {name}\n" in "\n" + f.read():
                        return full
    sys.exit(f"this lm_eval has no task {name}")


def evaluate(model, tasks, limit):
    """(version, {name: samples by document})."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        for name, documents in tasks:
            with open(os.path.join(folder, f"local_{name}.yaml"), "w", encoding="utf-8") as f:
                f.write(LOCAL.format(path=task_file(name), name=name, documents=os.path.abspath(documents)))
        got = lm_eval.simple_evaluate(model=HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=8),
                                      tasks=[f"local_{name}" for name, _ in tasks], limit=limit, log_samples=True, bootstrap_iters=0,
                                      task_manager=TaskManager(include_path=folder, include_defaults=False))
    samples = {name: sorted(got["samples"][f"local_{name}"], key=lambda s: s["doc_id"]) for name, _ in tasks}
    return f"lm_eval {lm_eval.__version__}", samples


def hold(name, version, samples, ours, least):
    """True where the two agree on all but a share of the choices, and on what is right."""
    same = same_norm = 0
    worst = 0.0
    mean = {key: [sum(s[key] for s in samples) / len(samples)] for key in ("acc", "acc_norm") if key in samples[0]}
    right = {"acc": 0, "acc_norm": 0}
    for s, o in zip(samples, ours):
        theirs = [float(r[0]) for r in s["filtered_resps"]]
        here, here_norm, gold = task_items.best(o["loglikelihood"]), task_items.best(
            [v / n for v, n in zip(o["loglikelihood"], o["characters"])]), o["gold"]
        worst = max(worst, max(abs(x - y) / max(1, abs(x)) for x, y in zip(theirs, o["loglikelihood"], strict=True)))
        same += task_items.best(theirs) == here
        # of two that are right or wrong alike with the same likelihoods, the choices are the same
        same_norm += "acc_norm" not in s or bool(s["acc_norm"]) == (here_norm == gold)
        right["acc"] += here == gold
        right["acc_norm"] += here_norm == gold
    n = len(samples)
    figures = ", ".join(f"{key} {100 * m[0]:.2f} there, {100 * right[key] / n:.2f} here" for key, m in mean.items())
    print(f"{name}: {n} items by {version}; {figures}; same choice {same / n:.4f}, right alike by length {same_norm / n:.4f}; "
          f"likelihoods differ by {worst:.1e} at most", flush=True)
    return min(same, same_norm) >= least * n


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("items")
    a.add_argument("tasks", nargs="+", metavar="NAME=DOCUMENTS")
    a.add_argument("--limit", type=int)
    a.add_argument("--least", type=float, default=0.995)
    a = a.parse_args()
    tasks = [t.split("=", 1) for t in a.tasks]
    with open(a.items, encoding="utf-8") as f:
        ours = [json.loads(line) for line in f]
    version, samples = evaluate(a.model, tasks, a.limit)
    good = True
    for name, _ in tasks:
        mine = [o for o in ours if o["task"] == name]
        if len(mine) < len(samples[name]):
            sys.exit(f"{a.items} has {len(mine)} items of {name}, the harness {len(samples[name])}")
        good = hold(name, version, samples[name], mine, a.least) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
