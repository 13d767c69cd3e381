#!/usr/bin/env python3
"""Zero-shot questions as `spinshard eval --tasks` reads them, from the files that users download: JSON lines or parquet (which
needs pyarrow) with the fields of the data sets' pages, or of the authors' own files. Prompts are those of
lm-evaluation-harness 0.4.13: what stands before a choice, and what is scored.

usage: tasks.py TASK FILE... --out OUT.jsonl [--limit N]
TASK: boolq piqa siqa hellaswag winogrande arc_easy arc_challenge openbookqa lambada

As there: `spinshard eval --set calib.bos=none` for models whose tokenizer adds a start token, which the harness leaves out; it
reports acc_norm (per character) for piqa, hellaswag, arc and openbookqa beside acc.
"""
import argparse
import json
import re
import sys


def boolq(d):
    gold = d["label"] if "label" in d else d["answer"]
    return {"context": f"{d['passage']}\nQuestion: {d['question']}?\nAnswer:", "choices": ["no", "yes"], "gold": int(gold)}


def piqa(d):
    return {"context": f"Question: {d['goal']}\nAnswer:", "choices": [d["sol1"], d["sol2"]], "gold": int(d["label"])}


def siqa(d):
    return {"context": f"Q: {d['context']} {d['question']}\nA:", "choices": [d["answerA"], d["answerB"], d["answerC"]],
            "gold": int(d["label"]) - 1}


def clean(text):
    """Of texts that were pages of WikiHow: their headings in brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag(d):
    return {"context": clean(f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}"),
            "choices": [clean(e) for e in d["endings"]], "gold": int(d["label"])}


def winogrande(d):
    begin, end = d["sentence"].split("_", 1)
    return {"contexts": [begin + d["option1"], begin + d["option2"]], "continuation": end.strip(), "gold": int(d["answer"]) - 1}


def choices_of(d):
    """(texts, place of the right one), of the data set's fields or of the authors' file."""
    listed = d["choices"] if "choices" in d else d["question"]["choices"]
    if isinstance(listed, list):
        listed = {key: [c[key] for c in listed] for key in ("text", "label")}
    return list(listed["text"]), list(listed["label"]).index(d["answerKey"].strip())


def stem(d):
    return d["question"]["stem"] if isinstance(d.get("question"), dict) else d.get("question_stem", d.get("question"))


def arc(d):
    texts, gold = choices_of(d)
    return {"context": f"Question: {stem(d)}\nAnswer:", "choices": texts, "gold": gold}


def openbookqa(d):
    texts, gold = choices_of(d)
    return {"context": stem(d), "choices": texts, "gold": gold}


def lambada(d):
    begin, _, last = d["text"].rpartition(" ")
    return {"context": begin, "continuation": last}


TASKS = {"boolq": boolq, "piqa": piqa, "siqa": siqa, "hellaswag": hellaswag, "winogrande": winogrande, "arc_easy": arc,
         "arc_challenge": arc, "openbookqa": openbookqa, "lambada": lambada}


def rows(path):
    if path.endswith(".parquet"):
        try:
            import pyarrow.parquet
        except ImportError:
            sys.exit("parquet needs pyarrow: python3 -m pip install pyarrow")
        yield from pyarrow.parquet.read_table(path).to_pylist()
        return
    with open(path, encoding="utf-8") as f:
        yield from (json.loads(line) for line in f if line.strip())


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("task", choices=TASKS)
    a.add_argument("files", nargs="+")
    a.add_argument("--out", required=True)
    a.add_argument("--limit", type=int, default=0)
    a = a.parse_args()
    n = 0
    with open(a.out, "w", encoding="utf-8") as f:
        for path in a.files:
            for number, d in enumerate(rows(path), 1):
                if a.limit and n >= a.limit:
                    break
                try:
                    item = TASKS[a.task](d)
                except (KeyError, ValueError, TypeError) as e:
                    sys.exit(f"{path}, item {number}: not a question of {a.task}: {type(e).__name__} {e}")
                f.write(json.dumps(item, ensure_ascii=False) + "\n")
                n += 1
    print(f"{a.out}: {n} items of {a.task}")


if __name__ == "__main__":
    main()
