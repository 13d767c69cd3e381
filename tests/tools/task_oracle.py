#!/usr/bin/env python3
"""Zero-shot questions through transformers, on the prompts of jobs/eval_tasks.h, beside what `spinshard eval --items` wrote.

usage: task_oracle.py MODEL ITEMS TASK.jsonl... [--least 0.995]     needs torch and transformers
"""
import os

import task_items

ENDS = " \t\r\n"


def encode(tokenizer, begin, end):
    begin = begin.rstrip(ENDS)
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


def load(folder):
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return "transformers", lambda pairs: (likelihood(model, *encode(tokenizer, *pair)) for pair in pairs)


if __name__ == "__main__":
    task_items.main(__doc__, load)
