#!/usr/bin/env python3
"""One call of the system fails in a whole run of quantize: the right exit code, one message, no half an
archive; and the next run, without faults, ends in the same bytes.

Flushes, renames, folders and closing are tried one by one, all of them: the path of a commit. Opening,
reading, writing and memory are sampled by seed. SPINSHARD_FAULTS=all tries every call of every kind and
kills at every call too (several minutes). tests/unit/test_run_state.c and test_archive_faults.c try every
call of a commit and of an archive's completion in process."""
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import Case, main, settings, sha256, spin, tar_hashes  # noqa: E402

ALL = os.environ.get("SPINSHARD_FAULTS") == "all"
CODES = {"eio": 3, "enospc": 5, "malloc": 6, "kill": -9}
CALIB = ("calib.window=64", "calib.windows=2")
MORE = {"plain": (), "learn": (*CALIB, "learn=[{objective: range, steps: 2, rows: 64}]"), "gptq": (*CALIB, "weights.method=gptq")}


class Faults(Case):
    """A model of one layer, so that a run takes a fifth of a second."""

    def setUp(self):
        super().setUp()
        self.model = make_model.make(self.path("m"), "--layers", 1, "--hidden", 32, "--intermediate", 32, "--heads", 2,
                                     "--kv-heads", 1)
        self.text = self.path("text.txt")
        with open(self.text, "w") as f:
            f.write("Once upon a time there was a little girl. " * 40)
        self.want = {}
        for kind in ("plain", "learn"):
            self.assertEqual(self.quantize(kind, self.path(kind)).rc, 0)
            self.want[kind] = self.hashes(self.path(kind))

    def quantize(self, kind, out, fault=None, ranks=0):
        more = ["--calib", self.text] if MORE[kind] else []
        return spin("quantize", "--model", self.model, "--out", out, *settings("weights.group=channel", *MORE[kind]), *more,
                    ranks=ranks, env={"SPINSHARD_FAULT": fault} if fault else None)

    def hashes(self, out):
        return {**tar_hashes(out), "manifest": sha256(os.path.join(out, "manifest.json"))}

    def check(self, kind, fault):
        """True where the fault ended the run."""
        action = "malloc" if fault.startswith("malloc") else fault.split(":")[2]
        out = self.path(f"{kind}-" + fault.replace(":", "-").replace("/", "-"))
        r = self.quantize(kind, out, fault)
        complete = os.path.exists(os.path.join(out, "manifest.json"))
        if r.rc == 0:
            self.assertEqual(self.hashes(out), self.want[kind], f"\n{fault}\n{r}")
            return False
        self.assertEqual(r.rc, CODES[action], f"\n{fault}\n{r}")
        self.assertEqual(len(r.errors()), 0 if action == "kill" else 1, f"\n{fault}\n{r}")
        self.assertNotRegex(r.err, r"Sanitizer|runtime error:", f"\n{fault}\n{r}")
        if complete:  # failed behind the manifest: what it lists is there
            self.assertEqual(self.hashes(out), self.want[kind], f"\n{fault}\n{r}")
        if kind == "plain" and action == "eio" and os.path.exists(os.path.join(out, "run", "parts")):
            kept = os.listdir(os.path.join(out, "run", "objects"))
            self.assertGreaterEqual(len(kept), 3, f"work is thrown away after {fault}")
        r = self.quantize(kind, out)
        if r.rc == 2 and complete:  # the run had ended but for its own traces
            r = spin("verify", out)
        self.assertEqual(r.rc, 0, f"\nafter {fault}\n{r}")
        self.assertEqual(self.hashes(out), self.want[kind], f"\nafter {fault}\n{r}")
        return True

    def count(self, faults, kind="plain"):
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda f: self.check(kind, f), faults))

    def every(self, call, action, kind="plain"):
        """Calls 1, 2, ... until a whole batch of them no longer comes. How many ended the run."""
        failed, n, batch = 0, 1, 8
        while True:
            hits = self.count([f"{call}:{i}:{action}" for i in range(n, n + batch)], kind)
            failed, n = failed + hits, n + batch
            if not hits:
                return failed
            self.assertLess(n, 5000)

    def test_the_path_of_a_commit(self):
        found = {call: self.every(call, "eio") for call in ("fsync", "rename", "mkdir", "close")}
        print(found)
        self.assertGreater(found["fsync"], 10)
        self.assertGreater(found["rename"], 5)

    def test_samples(self):
        calls = [f"{call}:{seed}/{most}:{action}" for call, most, action in (
            ("open", 60, "eio"), ("read", 60, "eio"), ("write", 100, "enospc"), ("malloc", 90, "malloc"))
            for seed in range(3)]
        self.assertGreater(self.count(calls), 4)

    def test_samples_of_learning(self):
        calls = [f"{call}:{seed}/{most}:{action}" for call, most, action in (
            ("any", 400, "eio"), ("any", 400, "kill"), ("malloc", 200, "malloc")) for seed in range(3)]
        self.assertGreater(self.count(calls, "learn"), 3)

    def test_silent_errors(self):
        """A number that changes while a matrix is fused, or packed, is found, and the tensor named."""
        for fault, what in (("fuse:3", r"model\.layers\.0\.\S+weight: fusion: a random probe"),
                            ("code:2", r"model\.layers\.0\.\S+weight_packed: the packed words of row 0")):
            out = self.path(fault)
            r = self.quantize("plain", out, fault)
            self.assertEqual((r.rc, len(r.errors())), (8, 1), f"\n{r}")
            self.assertRegex(r.err, what)
            self.assertEqual(self.quantize("plain", out).rc, 0)
            self.assertEqual(self.hashes(out), self.want["plain"])

    def test_silent_errors_of_gptq(self):
        """The same on the way of GPTQ: every matrix that is turned is probed, on the rank that fuses it."""
        out, found, n, linear = self.path("gptq"), [], 1, r"model\.layers\.0\.(\S+)\.weight: fusion: a random probe"
        while (r := self.quantize("gptq", out, f"fuse:{n}")).rc:
            self.assertEqual((r.rc, len(r.errors())), (8, 1), f"\n{r}")
            self.assertRegex(r.err, r"weight: fusion: a random probe")
            found += re.findall(linear, r.err)
            n += 1
        self.assertEqual(sorted(found), sorted([f"self_attn.{x}_proj" for x in "qkvo"] +
                                               [f"mlp.{x}_proj" for x in ("gate", "up", "down")]))
        want = self.hashes(out)
        out = self.path("gptq2")
        r = self.quantize("gptq", out, "fuse:3:1", ranks=2)
        self.assertEqual((r.rc, len(r.errors())), (8, 1), f"\n{r}")
        self.assertRegex(r.err, linear)
        self.assertEqual(self.quantize("gptq", out, ranks=2).rc, 0)
        self.assertEqual(self.hashes(out), want)

    def test_one_rank_of_gptq_lacks_memory(self):
        """The others wait for it nowhere: one message, and the next run ends in the same bytes."""
        self.assertEqual(self.quantize("gptq", self.path("good"), ranks=2).rc, 0)
        ended = 0
        for seed in range(5):
            out = self.path(f"lacks{seed}")
            r = self.quantize("gptq", out, f"malloc:{seed}/120:1", ranks=2)
            self.assertIn(r.rc, (0, 6), f"\n{r}")
            self.assertEqual(len(r.errors()), int(r.rc != 0), f"\n{r}")
            ended += r.rc != 0
        self.assertGreater(ended, 1)
        self.assertEqual(self.quantize("gptq", out, ranks=2).rc if r.rc else 0, 0)
        self.assertEqual(self.hashes(out), self.hashes(self.path("good")))

    def test_a_rank_that_holds_something_else(self):
        """A bit of what all ranks hold is lost on one of three: it is named, and nothing wrong is committed."""
        for n, what in ((1, r"learn\.0: rank 1 holds another R1"), (6, "rank 1 holds another (recipe|list)")):
            out = self.path(f"differs{n}")
            r = self.quantize("learn", out, f"state:{n}:1", ranks=3)
            self.assertEqual((r.rc, len(r.errors())), (8, 1), f"\n{r}")
            self.assertRegex(r.err, what)
            self.assertFalse(os.path.exists(os.path.join(out, "manifest.json")))
        r = self.quantize("learn", out, ranks=3)
        self.assertEqual(r.rc, 0, f"\n{r}")
        self.assertEqual(self.hashes(out), self.want["learn"])

    if ALL:
        def test_all(self):
            for kind in ("plain", "learn"):
                for call, action in (("malloc", "malloc"), ("any", "eio"), ("any", "enospc"), ("any", "kill")):
                    print(kind, call, action, self.every(call, action, kind), flush=True)


if __name__ == "__main__":
    main()
