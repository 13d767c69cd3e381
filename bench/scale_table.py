#!/usr/bin/env python3
"""Plan against fact for each phase of a run: seconds, bytes resident, read, written and sent, and the share of the product
peak, which is the time that the products alone would take at the measured rates over the time that was taken.

usage: scale_table.py MODEL OUT RATES.json
MODEL: the folder; OUT: the output of quantize, with events.jsonl, recipe.yaml and run.json; RATES.json: what `plan --measure
--json` printed on a core or more of this machine.
"""
import json
import os
import sys

ROUNDINGS = 4


def read_json(*path):
    with open(os.path.join(*path)) as f:
        return json.load(f)


def shape_of(config):
    n, f = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or n // heads
    # Width of the inputs of the four steps, and rows of the linears that take them.
    return {"layers": config["num_hidden_layers"], "hidden": n, "vocab": config["vocab_size"],
            "steps": [(n, (heads + 2 * kv) * d), (heads * d, n), (n, 2 * f), (f, n)]}


def capture_at_peak(s, tokens, rates):
    """Forward, forward again, backward; the head forward and backward."""
    layer = sum(w * r for w, r in s["steps"])
    return tokens * (3 * 2 * s["layers"] * layer + 4 * s["vocab"] * s["hidden"]) / rates["bf16"]


def gptq_at_peak(s, tokens, rates, learned, asymmetric):
    """Of a layer: the forward passes of the streams, sums and factor of a Hessian, rows, fusion with a dense R1. GPTAQ has
    cross terms, and rounds its rows ROUNDINGS times to find its strength (pipeline/plan/plan_time.h)."""
    sums, streams, rows = (3, 2, 4 * ROUNDINGS + 2) if asymmetric else (1, 1, 3)
    bf16 = sum(sums * tokens * w * w + streams * 2 * tokens * w * r for w, r in s["steps"])
    fp64 = sum(2 / 3 * w**3 + rows * w * w * r for w, r in s["steps"])
    if learned:
        fp64 += sum(2 * s["hidden"] * w * r for w, r in s["steps"])
    return s["layers"] * (bf16 / rates["bf16"] + fp64 / rates["fp64"])


def size(b):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if b < 1024:
            return "%.4g %s" % (b, unit)
        b /= 1024
    return "%.4g TiB" % b


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, out, rates_path = sys.argv[1:]
    s, run = shape_of(read_json(model, "config.json")), read_json(out, "run.json")
    cores = run["ranks"] * run["threads"]
    rates = {k: cores * v for k, v in read_json(rates_path)["rates"].items() if k in ("bf16", "fp32", "fp64")}
    with open(os.path.join(out, "events.jsonl")) as f:
        events = [json.loads(line) for line in f]
    with open(os.path.join(out, "recipe.yaml")) as f:
        recipe = f.read()

    def key(name):
        return int(next(x for x in recipe.split("\n") if x.strip().startswith(name + ":")).split(":")[1])

    tokens = key("windows") * key("window")
    learned = any(e["phase"].startswith("learn.") for e in events)
    print("%d ranks x %d threads; peak of all: %.0f Gflop/s in bf16, %.0f in fp64" %
          (run["ranks"], run["threads"], rates["bf16"] / 1e9, rates["fp64"] / 1e9))
    print("%-8s %18s %22s %21s %10s %10s %5s %5s" % ("phase", "seconds: plan fact", "memory: plan      fact",
                                                     "sent: plan      fact", "read", "written", "busy", "peak"))
    for e in events:
        if e["event"] != "end" or "planned_bytes" not in e:
            continue
        share = None
        if e["phase"] == "capture":
            share = capture_at_peak(s, tokens, rates) / e["seconds"]
        elif e["phase"] == "gptq" and "method: gpt" in recipe:
            share = gptq_at_peak(s, tokens, rates, learned, "method: gptaq" in recipe) / e["seconds"]
        elif e["phase"].startswith("learn."):
            shares = [x["peak_share"] for x in events if x["phase"] == e["phase"] and "peak_share" in x]
            share = sum(shares) / len(shares) if shares else None
        print("%-8s %9.1f %8.1f %11s %10s %11s %9s %10s %10s %5.2f %5s" % (
            e["phase"], e["planned_seconds"], e["seconds"], size(e["planned_bytes"]), size(e["peak_rss_bytes"]),
            size(e["planned_sent_bytes"]), size(e["sent_bytes"]), size(e["read_bytes"]), size(e["written_bytes"]), e["busy"],
            "" if share is None else "%.0f %%" % (100 * share)))


if __name__ == "__main__":
    main()
