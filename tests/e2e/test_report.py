#!/usr/bin/env python3
"""report: the page of a finished, an interrupted and a plain run has every section, is well formed, asks for nothing and is
small; its numbers are those of events.jsonl; a page that cannot be written spoils no run. In a browser:
test_report_browser.py."""
import array
import html.parser
import json
import math
import os
import re
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, spin, unpack  # noqa: E402

SECTIONS = ["Learning", "Before and after", "Weights", "GPTQ", "Accuracy", "Run"]
VOID = {"meta", "br", "path"}
LEARNED = ["--calib", TEXT, *settings("calib.windows=6", "calib.window=96", "weights.method=gptaq", "weights.group=channel",
                                      "rotate.start=had", "activations={bits: 4, clip: search}", "learn=[{objective: range, steps: 6, rows: 256}]")]


CHI2_99 = {4: 13.2767, 16: 31.9999}  # from tables: the points that chi^2 of so many degrees does not exceed with 99 %


def log_det(rows):
    """Of the covariance, over n - 1, by elimination."""
    d = len(rows[0])
    mean = [math.fsum(r[j] for r in rows) / len(rows) for j in range(d)]
    c = [[math.fsum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / (len(rows) - 1) for j in range(d)] for i in range(d)]
    for k in range(d):
        for i in range(k + 1, d):
            f = c[i][k] / c[k][k]
            c[i] = [a - f * b for a, b in zip(c[i], c[k])]
    return math.fsum(math.log(c[k][k]) for k in range(d))


def nearest(row):
    """Squared error of a row in 4 bits, symmetric, with a scale in fp16 that its largest entry gives."""
    step = struct.unpack("<e", struct.pack("<e", max(map(abs, row)) / 7))[0]
    return math.fsum((v - step * max(-8, min(7, round(v / step)))) ** 2 for v in row)


class Page(html.parser.HTMLParser):
    """Tags that do not close, words, and what would be asked for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.asked, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.asked += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") or re.search("url\\(|://", v or "")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> after {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


class Report(Case):
    def page(self, path, charts):
        with open(path, encoding="utf-8") as f:
            text = f.read()
        self.assertLess(len(text), 2 << 20)
        page = Page(text)
        self.assertEqual((page.open, page.asked), ([], []))
        self.assertNotIn("script", page.tags)
        self.assertNotRegex(text, r"\bnan\b|\binf\b|null")
        for name in SECTIONS:
            self.assertIn(name, page.words)
        self.assertGreaterEqual(page.tags.count("svg"), charts)
        return page

    def events(self, out, event):
        with open(os.path.join(out, "events.jsonl"), encoding="utf-8") as f:
            return [e for e in map(json.loads, f) if e["event"] == event]

    def measured(self, out, source, path):
        """What eval says of an archive beside its source, and as it would say of two tasks; in a file too."""
        r = self.good("eval", "--model", out, "--against", source, "--text", TEXT, "--window", 96, "--limit", 3, "--json").json()
        task = {"n": 4, "acc": 0.5, "acc_norm": 0.25, "acc_stderr": 0.25, "acc_norm_stderr": 0.2}
        r["tasks"] = [dict(task, task="one"), dict(task, task="two", acc=0.525)]
        r["tasks_average"] = {"tasks": 2, "acc": 0.5125, "acc_norm": 0.25, "acc_stderr": 0.03, "acc_norm_stderr": 0.02}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(r, f)
        return r

    def test_finished(self):
        model, out, evaluation = self.path("a<b & 'c'"), self.path("out"), self.path("eval.json")
        shutil.copytree(STORIES, model)
        self.good("quantize", "--model", model, "--out", out, *LEARNED, ranks=2)
        self.page(os.path.join(out, "report.html"), 40)
        measured = self.measured(out, model, evaluation)
        told = self.good("report", out, "--eval", evaluation, "--json", "--html", self.path("page.html")).json()
        page = self.page(self.path("page.html"), 40)
        self.assertIn(model, page.words)
        self.assertEqual(told["state"], "complete")
        self.assertEqual(told["accuracy"], [measured])
        self.assertIn("average of tasks", page.words)
        self.assertIn("51.25 \u00b1 3.00", page.words)
        self.assertEqual(told["summary"]["ranks"], 2)
        self.assertEqual(told["summary"]["restarts"], 0)
        self.assertEqual(told["summary"]["tar_bytes"], sum(os.path.getsize(os.path.join(out, n)) for n in os.listdir(out) if n.endswith(".tar")))
        (phase,) = told["learning"]
        self.assertEqual([s["loss"] for s in phase["steps"]], [e["loss"] for e in self.events(out, "step") if e["phase"] == "learn.0"])
        self.assertEqual([x["sites"] for x in told["sites"]], [e["sites"] for e in self.events(out, "sites")])
        self.assertEqual([x["noise"] for x in told["noise"]], [e["noise"] for e in self.events(out, "noise")])
        self.assertIn("Cost of the quantizer: down", page.words)
        self.assertEqual([x["tensors"] for x in told["gptq"]], [e["tensors"] for e in self.events(out, "errors")])
        self.assertEqual({w["item"]: w["relative_error"] for w in told["weights"]},
                         {e["item"]: e["relative_error"] for e in self.events(out, "layer") if "relative_error" in e})
        for p in told["run"]["phases"]:
            self.assertEqual((len(p["peak_rss_bytes_by_rank"]), max(p["peak_rss_bytes_by_rank"])), (2, p["peak_rss_bytes"]))
        self.assertIn("Largest memory of each rank", page.words)
        done = {p["phase"]: p["seconds"] for p in told["run"]["phases"]}
        self.assertEqual(done, {e["phase"]: e["seconds"] for e in self.events(out, "end")})

    def test_card(self):
        """The card of the archive, and the figures, and nothing else; the archive stays as it was."""
        out, evaluation, card = self.path("out"), self.path("eval.json"), self.path("CARD.md")
        self.good("quantize", "--model", STORIES, "--out", out, *LEARNED)
        measured = self.measured(out, STORIES, evaluation)
        self.good("report", out, "--eval", evaluation, "--card", card)
        with open(card, encoding="utf-8") as f:
            got = f.read()
        with open(os.path.join(unpack(out, self.path("hf")), "README.md"), encoding="utf-8") as f:
            before, recipe = f.read().split("\n## Recipe\n")
        self.assertTrue(got.startswith(before + "\n## Figures\n"))
        self.assertTrue(got.endswith("\n## Recipe\n" + recipe))
        (p,), (row,) = measured["perplexity"], [line for line in got.splitlines() if "| stories.txt |" in line]
        a = p["against"]
        self.assertEqual([cell.strip() for cell in row.split("|")[2:-1]], [
            "stories.txt", "96", str(p["tokens"]), f"{p['ppl']:.3f} \u00b1 {p['ppl_stderr']:.3f}",
            f"{a['ppl']:.3f} \u00b1 {a['ppl_stderr']:.3f}", f"{a['kl_mean']:.4f} \u00b1 {a['kl_mean_stderr']:.4f}",
            f"{100 * a['same_top']:.2f} \u00b1 {100 * a['same_top_stderr']:.2f}"])
        self.assertIn("| average of tasks | | 51.25 \u00b1 3.00 |", got)
        self.good("verify", out)
        self.bad(2, ["--card", "--eval"], "report", out, "--card", card)

    def test_interrupted_and_gone_on(self):
        out = self.path("out")
        args = ["quantize", "--model", STORIES, "--out", out, *LEARNED]
        r = spin(*args, env={"SPINSHARD_FAULT": "rename:22:0:kill"})
        self.assertNotEqual(r.rc, 0)
        self.good("report", out)
        self.page(os.path.join(out, "report.html"), 5)
        told = self.good("report", out, "--json").json()
        self.assertEqual((told["state"], told["summary"]["restarts"]), ("unfinished", 0))
        self.assertFalse(told["run"]["phases"][-1]["done"])
        self.good(*args)
        told = self.good("report", out, "--json").json()
        self.assertEqual((told["state"], told["summary"]["restarts"]), ("complete", 1))
        (phase,) = told["learning"]
        self.assertEqual([s["step"] for s in phase["steps"]], list(range(1, 7)))
        self.assertEqual([x["layer"] for x in told["gptq"]], list(range(5)))

    def test_plain(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out)
        page = self.page(os.path.join(out, "report.html"), 2)
        self.assertIn("Nothing was learned, or nothing yet.", page.words)
        self.assertIn("This run has looked at no inputs", "".join(page.words))
        self.assertEqual(self.good("report", out, "--json").json()["sites"], [])
        off = self.path("off")
        self.good("quantize", "--model", STORIES, "--out", off, "--report", "off")
        self.assertFalse(os.path.exists(os.path.join(off, "report.html")))

    def test_inputs_without_gptq(self):
        """A capture's rows show both sides, on any ranks alike and with weights of 16 bits; GPTQ, which sees other tokens of the
        same text, finds nearly the same; without the report nothing is kept and the archive is the same."""
        learned = ["--recipe", "range-w4a4kv4", "--calib", TEXT, *settings("calib.windows=6", "calib.window=96", "rotate.r4_block=pow2",
                   "weights.group=channel", "learn=[{objective: range, steps: 6, rows: 256}]")]
        told, tars = {}, {}
        for name, ranks, more in (("one", 1, []), ("three", 3, []), ("16", 1, settings("weights.bits=16", "rotate.online=[]")), ("off", 1, ["--report", "off"]),
                                  ("gptq", 1, settings("weights.method=gptq"))):
            out = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", out, *learned, *more, ranks=ranks)
            told[name] = [x["sites"] for x in self.good("report", out, "--json").json()["sites"]]
            (tars[name],) = (open(os.path.join(out, n), "rb").read() for n in os.listdir(out) if n.endswith(".tar"))
            if name in ("one", "16"):
                words = "".join(self.page(os.path.join(out, "report.html"), 40).words)
                self.assertNotIn("This run has looked at no inputs", words)
        self.assertEqual([e["layer"] for e in self.events(self.path("one"), "sites")], list(range(5)))
        self.assertEqual(told["one"], told["three"])
        self.assertEqual(*([[s["before"] for s in x] for x in told[name]] for name in ("one", "16")))
        self.assertEqual(told["off"], [])
        self.assertEqual(tars["one"], tars["off"])
        for ours, theirs in zip(told["one"], told["gptq"]):
            self.assertEqual(len(ours), 4)
            for a, b in zip(ours, theirs):
                self.assertEqual((a["site"], a["width"], a["tokens"] > 0), (b["site"], b["width"], True))
                for side in ("before", "after"):
                    self.assertLess(abs(math.log(a[side]["rms"] / b[side]["rms"])), 0.2, (a["site"], side))
                    self.assertIsNotNone(a[side]["log_qsur"])
        self.assertIn("kurtosis", self.good("inspect", "--sites", self.path("one")).out)

    def test_inputs_end_to_end(self):
        """Rows of the capture outlast a phase that runs the whole model, and a kill in it: before is what `range` alone tells, after
        is of the rotations that this phase has learned, which are others."""
        rows = "{objective: range, steps: 3, rows: 256}"
        learned = ["--recipe", "range-w4a4kv4", "--calib", TEXT, *settings("calib.windows=4", "calib.window=96", "rotate.r4_block=pow2", "weights.group=channel")]
        told = {}
        for name, more, ranks in (("range", "", 1), ("ce", ", {objective: ce, steps: 3, batch: 2, window: 96}", 1), ("killed", ", {objective: ce, steps: 3, batch: 2, window: 96}", 2)):
            out = self.path(name)
            args = ["quantize", "--model", STORIES, "--out", out, *learned, *settings(f"learn=[{rows}{more}]")]
            if name == "killed":
                r = spin(*args, env={"SPINSHARD_FAULT": "unit:8:0:kill"})  # three between windows, the start, three steps, one of ce
                self.assertNotEqual(r.rc, 0)
                self.assertEqual(self.events(out, "start")[-1]["phase"], "learn.1")
                self.assertEqual(self.events(out, "sites"), [])
            self.good(*args, ranks=ranks)
            told[name] = [x["sites"] for x in self.good("report", out, "--json").json()["sites"]]
        self.assertEqual(len(told["ce"]), 5)
        self.assertEqual(told["killed"], told["ce"])
        self.assertEqual(*([[s["before"] for s in x] for x in told[name]] for name in ("range", "ce")))
        self.assertNotEqual(told["range"], told["ce"])

    def spread(self, tensor):
        dtype, shape, data = tensor
        self.assertEqual(dtype, "F32")
        x = array.array("f", data)
        mean = math.fsum(x) / len(x)
        two, four = (math.fsum((v - mean) ** k for v in x) / len(x) for k in (2, 4))
        rms = math.sqrt(math.fsum(v * v for v in x) / len(x))
        rows, cols = shape
        n = min(rows, 128, max(16, rows // 16))
        sample = [x[r * cols:(r + 1) * cols] for r in (i * rows // n for i in range(n))]
        error = math.sqrt(math.fsum(nearest(w) for w in sample) / math.fsum(v * v for w in sample for v in w))
        d = next(k for k in (16, 8, 4, 2, 1) if cols % k == 0)
        pieces = [w[j:j + d] for w in sample for j in range(0, cols, d)]
        half, q = d / 2, CHI2_99[d]
        volume = half * math.log(math.pi * q) - math.lgamma(half + 1) + log_det(pieces) / 2
        return {"kurtosis": four / two ** 2, "max_over_rms": max(map(abs, x)) / rms,
                "log_qsur": volume / d - math.log(2 * max(map(abs, x))), "nearest_error": error}

    def test_spread_of_weights(self):
        """As computed from the tensors of the checkpoint, and from the fused ones of a 16-bit archive of the same rotations."""
        plain, had = self.path("plain"), ["rotate.start=had", "weights.group=channel"]
        self.good("quantize", "--model", STORIES, "--out", plain, *settings(*had, "weights.bits=16"))
        fused, _ = make_model.read_safetensors(os.path.join(unpack(plain, self.path("hf")), "model-00001-of-00001.safetensors"))
        source, _ = make_model.read_safetensors(os.path.join(STORIES, "model.safetensors"))
        gptq = ["weights.method=gptq", "calib.windows=4", "calib.window=96"]
        for name, more, ranks in (("rtn", [], 1), ("gptq", gptq, 2)):
            out = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(*had, *more), ranks=ranks)
            told = self.good("report", out, "--json").json()["weights"]
            (layer,) = (w for w in told if w["layer"] == 0)
            for linear in layer["linears"]:
                (tensor,) = (t for t in source if t.startswith("model.layers.0.") and t.endswith(f".{linear['tensor']}.weight"))
                for side, weights in (("before", source), ("after", fused)):
                    want = self.spread(weights[tensor])
                    for key, value in linear[side].items():
                        self.assertLess(abs(value - want[key]), 6e-4 * abs(want[key]), (name, tensor, side, key))  # four digits
                    self.assertEqual(len(linear[side]), len(want))

    def test_beside(self):
        outs = [self.path(name) for name in ("a", "b", "c")]
        for out, bits in zip(outs, (4, 8, 3)):
            self.good("quantize", "--model", STORIES, "--out", out, *settings(f"weights.bits={bits}"))
        words = [w for out in outs[1:] for w in ("--beside", out)]
        told = self.good("report", outs[0], *words, "--html", self.path("page.html"), "--json").json()
        for one, out in zip(told["beside"], outs[1:]):
            self.assertEqual(one, self.good("report", out, "--json").json())
        page = self.page(self.path("page.html"), 3)
        self.assertIn("3 runs beside each other", page.words)
        self.assertTrue({"a", "b", "c"} <= set(page.words))
        self.good("report", outs[0], *(words * 4), "--html", self.path("page.html"))  # more than have curves
        with open(self.path("page.html"), encoding="utf-8") as f:
            self.assertIn("Curves are of the first 8 runs", f.read())
        self.bad(3, ["nothing-here"], "report", outs[0], "--beside", self.path("nothing-here"))

    def test_spread(self):
        """Of each run a point, in the page and in its numbers; another file is refused."""
        out, spread = self.path("out"), self.path("spread.json")
        self.good("quantize", "--model", STORIES, "--out", out)
        found = {"random_starts": {"had": {"runs": {"ppl": [4.5, 4.25, 4.75], "acc": [0.5, 0.25, 0.75]}}, "learned <1>": {"runs": {"ppl": [4]}}},
                 "rotations": {"none": {"runs": {"ppl": [9.5]}}}}
        before = self.page(os.path.join(out, "report.html"), 2)
        self.assertNotIn("Random starts", before.words)
        with open(spread, "w", encoding="utf-8") as f:
            json.dump(found, f)
        told = self.good("report", out, "--spread", spread, "--html", self.path("page.html"), "--json").json()
        self.assertEqual(told["spread"], found)
        page = self.page(self.path("page.html"), 4)
        self.assertEqual(page.tags.count("circle") - before.tags.count("circle"), 8)
        for word in ("Random starts", "learned <1>", "9.5", "75"):
            self.assertIn(word, page.words)
        self.bad(3, ["random_starts"], "report", out, "--spread", os.path.join(STORIES, "config.json"))

    def test_spoils_nothing(self):
        out = self.path("out")
        os.makedirs(os.path.join(out, "report.html", "x"))
        r = self.good("quantize", "--model", STORIES, "--out", out)
        self.assertIn("no report", r.err)
        self.good("verify", out)

    def test_folder_of_no_utf8(self):
        """The archive is complete; the page, which cannot say its folder's name, is not written."""
        out = os.fsdecode(os.fsencode(self.path("o")) + b"\xff")
        r = self.good("quantize", "--model", STORIES, "--out", out, *settings())
        self.assertIn("not UTF-8", r.err)
        self.assertFalse(os.path.exists(os.path.join(out, "report.html")))
        self.bad(3, ["not UTF-8"], "report", out)

    def test_bad(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out)
        self.bad(3, ["nothing-here"], "report", self.path("nothing-here"))
        self.bad(3, ["output folder"], "report", STORIES)
        self.bad(3, ["perplexity"], "report", out, "--eval", os.path.join(STORIES, "config.json"))
        self.bad((3, 5), ["no-folder"], "report", out, "--html", self.path("no-folder", "x.html"))


if __name__ == "__main__":
    main()
