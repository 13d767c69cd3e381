#!/usr/bin/env python3
"""GPTQ over ranks: the same archive on any number of ranks and threads, in memory and from files; better than
rounding to nearest on text that it has not seen; what it tells; what it refuses."""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, main, result_hashes, settings, spin  # noqa: E402

LAYERS = 5  # of STORIES
GPTQ = ("weights.method=gptq", "weights.group=channel", "weights.bits=3", "calib.windows=11", "calib.window=64")
GPTAQ = ("weights.method=gptaq", "weights.target=full", "weights.stream=quantized", "weights.alpha=0.5", "weights.symmetric=false",
         "weights.scale=search", "rotate.online=[r3, r4]", "rotate.r4_block=4", "activations.bits=4", "kv.bits=4", "calib.windows=11",
         "calib.window=64")


class Gptq(Case):
    def args(self, out, *how, model=STORIES, more=()):
        return ["quantize", "--model", model, "--calib", TEXT, "--out", out, *settings(*how), *more]

    def result(self, out):
        got = result_hashes(out, optional=("rotations.safetensors",))  # none without rotation
        self.assertGreater(len(got), 2)
        return got

    def run_one(self, name, *how, model=STORIES, more=(), **where):
        out = self.path(name)
        r = self.good(*self.args(out, *how, model=model, more=more), **where)
        return self.result(out), r

    def errors(self, out):
        layers = self.good("inspect", out, "--errors", "--json").json()["layers"]
        return [t for layer in layers for t in layer["tensors"]]

    # ---- the same bytes ----

    def same(self, layouts, *how, **what):
        first, _ = self.run_one("first", *how, **what)
        for ranks, threads in layouts:
            got, _ = self.run_one(f"{ranks}-{threads}", *how, ranks=ranks, threads=threads, **what)
            self.assertEqual(first, got, f"{ranks} ranks, {threads} threads")

    def test_ranks(self):
        model = make_model.make(self.path("m"), "--biases", "--dtype", "BF16", "--shards", 2)
        self.same([(1, 2), (2, 1), (3, 2), (4, 1)], *GPTQ, model=model)

    def test_ranks_of_both_streams(self):
        self.same([(1, 2), (2, 1), (3, 2), (4, 1)], *GPTAQ, "weights.group=channel")

    def test_ranks_of_a_quantized_stream(self):
        """GPTQ, and GPTAQ towards each layer's own inputs, on the stream that the quantized model sees."""
        for method in ("gptq", "gptaq"):
            how = [*GPTAQ, f"weights.method={method}", "weights.target=layer", "weights.group=channel"]
            first = self.run_one(method, *how)[0]
            for ranks in (2, 3, 4):
                self.assertEqual(first, self.run_one(f"{method}{ranks}", *how, ranks=ranks)[0], f"{method} on {ranks}")

    def test_no_rotation(self):
        self.same([(3, 1)], *GPTQ, "rotate.r1=false", "rotate.r2=none", "weights.act_order=false")

    def test_grid(self):
        """Hessians over a grid: equal bytes for equal numerics; close to those of one rank."""
        grid = ("numerics.gptq_grid_from=100", "numerics.gptq_grid=2x1", "numerics.threads=1")
        first, _ = self.run_one("g2", *GPTQ, *grid, ranks=2)
        for ranks in (3, 4):
            self.assertEqual(first, self.run_one(f"g{ranks}", *GPTQ, *grid, ranks=ranks)[0])
        self.run_one("alone", *GPTQ)
        pairs = list(zip(self.errors(self.path("g2")), self.errors(self.path("alone"))))
        self.assertEqual(len(pairs), 7 * LAYERS)
        for a, b in pairs:
            self.assertEqual(a["tensor"], b["tensor"])
            self.assertLess(abs(a["after"] - b["after"]), 0.02 * b["after"], f"{a} {b}")
        # up to the first down_proj nothing has been over the grid
        self.assertEqual([p for p, _ in pairs[:6]], [p for _, p in pairs[:6]])
        self.assertLess(abs(pairs[6][0]["before"] - pairs[6][1]["before"]), 1e-6)
        self.bad(7, ["grid of 2x1", "at least that many ranks"], *self.args(self.path("few"), *GPTQ, *grid), out=self.path("few"))

    def test_grid_of_both_streams(self):
        how = [*GPTAQ, "weights.target=layer", "weights.group=channel", "numerics.gptq_grid_from=32",
               "numerics.gptq_grid=2x1", "numerics.threads=1"]
        first, _ = self.run_one("g2", *how, ranks=2)
        self.assertEqual(first, self.run_one("g3", *how, ranks=3)[0])

    def test_half_of_the_memory(self):
        """--mem is half of what the run would take: activations go to files, it stays below, the bytes are the same."""
        how = [*GPTQ, "weights.group=channel", "calib.windows=700", "calib.window=256"]
        first, r = self.run_one("whole", *how)
        total = self.planned(r)
        peak = self.peak(self.path("whole"))
        self.assertGreater(peak, 0.5 * total, "activations are most of it")
        got, r = self.run_one("half", *how, more=["--mem", f"{int(total / 2)}M"])
        self.assertEqual(first, got)
        self.assertRegex(r.err, "activations go to .*run/scratch.*do not fit in memory")
        self.assertLess(self.peak(self.path("half")), total / 2)

    def planned(self, r):
        return float(re.search(r"gptq: memory planned.*?: ([\d.]+) MiB", r.err).group(1))

    def less_by_rows(self, r):
        """A bound that half as many rows meet: halfway between the plan of this run and that one. What the program itself
        takes differs by up to 1 MiB from start to start, so a bound just below the plan might be met without parts."""
        rows = float(re.search(r"gptq: memory planned.*?rows and codes ([\d.]+) MiB", r.err).group(1))
        self.assertGreater(rows, 12)
        return ["--mem", f"{int(1024 * (self.planned(r) - rows / 4))}K"]

    def peak(self, out):
        """MiB of the largest rank while layers were rounded; no more than 10 % above its plan."""
        (end,) = [e for e in events(out) if e["phase"] == "gptq" and e["event"] == "end"]
        self.assertLess(end["peak_rss_bytes"], 1.1 * end["planned_bytes"])
        return end["peak_rss_bytes"] / (1 << 20)

    def test_files(self):
        """Activations in files, asked for or since memory is short: the same bytes, and nothing is left."""
        how = [*GPTAQ, "weights.target=layer", "weights.group=channel", "calib.windows=96", "calib.window=256"]
        first, r = self.run_one("memory", *how)
        scratch = self.path("scratch")
        self.assertEqual(first, self.run_one("files", *how, more=["--scratch", scratch], ranks=2)[0])
        self.assertEqual(os.listdir(scratch), [])
        found = re.search(r"gptq: memory planned.*?: ([\d.]+) MiB = .*activations ([\d.]+) MiB", r.err)
        total, activations = map(float, found.groups())
        self.assertGreater(activations, 20)
        got, r = self.run_one("short", *how, more=["--mem", f"{int(total - activations / 2)}M"])
        self.assertEqual(first, got)
        self.assertRegex(r.err, "activations go to .*run/scratch.*do not fit in memory")
        out = self.path("full")
        self.bad(6, ["needs", "--mem"], *self.args(out, *how, more=["--mem", "20M"]), out=out)

    def test_rows_in_parts(self):
        """Rows are most of it and memory is short: a rank rounds them in parts; the same bytes. Of q, k and v there are three
        times as many rows as columns, so that four parts of them are what the factor of a Hessian takes."""
        model = make_model.make(self.path("m"), "--hidden", 512, "--intermediate", 512, "--heads", 8, "--kv-heads", 8, "--head-dim",
                                64, "--layers", 1)
        for method in (GPTQ, (*GPTAQ, "weights.target=layer")):
            how = (*method, "weights.group=channel")
            first, r = self.run_one(method[0] + "1", *how, model=model)
            for parts in (2, 4):
                out = f"{method[0]}-{parts}"
                got, r = self.run_one(out, *how, model=model, more=self.less_by_rows(r))
                self.assertEqual(first, got)
                self.assertRegex(r.err, f"rows are rounded in {parts} parts .*memory is short")
                self.peak(self.path(out))
            got, r = self.run_one(method[0] + "-ranks", *how, model=model, ranks=2)
            got, r = self.run_one(method[0] + "-ranks-2", *how, model=model, ranks=2, more=self.less_by_rows(r))
            self.assertEqual(first, got)
            self.assertIn("rows are rounded in 2 parts", r.err)
        got, r = self.run_one("few", *how, model=model, ranks=4, more=self.less_by_rows(r))
        self.assertEqual(first, got)

    def test_nothing_read_ahead(self):
        """Rounding to nearest with less memory than it would like: tensors are read one by one; the same bytes."""
        model = make_model.make(self.path("m"), "--hidden", 256, "--intermediate", 1536, "--layers", 4)
        first, r = self.run_one("whole", "weights.method=rtn", model=model)
        total = float(re.search(r"plan: round .*?, ([\d.]+) MiB on rank 0", r.err).group(1))
        got, r = self.run_one("short", "weights.method=rtn", model=model, more=["--mem", f"{int(total) - 4}M"])
        self.assertEqual(first, got)
        self.assertIn("no tensor is read ahead", r.err)

    def limited(self, name, group, limits):
        """The environment of a process in such control groups: made folders, as not every machine has both versions to write to."""
        root = self.path(name)
        for path, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in limits.items()}}.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w") as f:
                f.write(f"{text}\n")
        return {"SPINSHARD_TEST_ROOT": root}

    def test_memory_of_the_node(self):
        """Without --mem the bound is that of the control groups, also of one above: at 60 % of the plan activations go to files, and
        the run stays below; where nothing helps it is refused before anything is loaded."""
        how = [*GPTQ, "weights.group=channel", "calib.windows=300", "calib.window=256"]
        first, r = self.run_one("whole", *how)
        bound = int(0.6 * self.planned(r)) << 20
        for name, group, limits in (
                ("v2", "0::/job_1/step_0", {"job_1/step_0/memory.max": "max", "job_1/memory.high": bound}),
                ("v1", "4:cpuset,memory:/job_1\n0::/", {"memory/job_1/memory.limit_in_bytes": bound})):
            got, r = self.run_one(f"in {name}", *how, env=self.limited(name, group, limits))
            self.assertRegex(r.err, "activations go to .*run/scratch.*do not fit in memory")
            self.assertEqual(first, got)
            self.assertLess(self.peak(self.path(f"in {name}")) * (1 << 20), bound)
        total = float(re.search(r"plan: round .*?, ([\d.]+) MiB on rank 0",
                                self.run_one("nearest", "weights.method=rtn")[1].err).group(1))
        env = self.limited("nowhere", "0::/job_1", {"job_1/memory.max": int(0.6 * total * (1 << 20))})
        out = self.path("refused")
        self.bad(6, ["needs", "its share of the node or cgroup"], *self.args(out, "weights.method=rtn"), out=out, env=env)

    def test_scratch_full(self):
        """No space for activations: exit 5; the same command goes on once there is some."""
        how = [*GPTQ, "calib.windows=16"]
        first, _ = self.run_one("ref", *how)
        out, scratch = self.path("o"), self.path("scratch")
        os.makedirs(scratch)
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", scratch],
                                          capture_output=True).returncode:
            self.skipTest("needs the right to mount a small tmpfs")
        self.addCleanup(subprocess.run, ["umount", scratch])
        args = self.args(out, *how, more=["--scratch", scratch])
        for ranks in (2, 3):
            self.bad(5, ["scratch/spinshard-", "space", "the same command then goes on"], *args, ranks=ranks, out=out)
        subprocess.run(["mount", "-o", "remount,size=64M", scratch], check=True)
        self.good(*args, ranks=2)
        self.assertEqual(first, self.result(out))
        self.assertEqual(os.listdir(scratch), [])

    def test_a_write_to_scratch_fails(self):
        how = [*GPTQ, "calib.windows=8"]
        first, _ = self.run_one("ref", *how)
        out, scratch = self.path("o"), self.path("scratch")
        args = self.args(out, *how, more=["--scratch", scratch])
        writes = 1
        while True:  # the n-th write fails, until one of those into the scratch folder does
            r = spin(*args, env={"SPINSHARD_FAULT": f"write:{writes}:1:enospc"}, ranks=2)
            if "scratch/spinshard-" in "".join(r.errors()):
                break
            self.assertLess(writes, 200, f"no write into the scratch folder failed\n{r}")
            self.assertNotEqual(r.rc, 0, f"no write into the scratch folder\n{r}")
            writes += 1
        self.assertEqual(r.rc, 5, f"\n{r}")
        self.good(*args, ranks=2)
        self.assertEqual(first, self.result(out))
        self.assertEqual(os.listdir(scratch), [])

    def test_scratch_lost(self):
        """The scratch folder is gone when a killed run goes on: activations are computed again, which is said."""
        how = [*GPTAQ, "weights.group=channel"]
        first, _ = self.run_one("ref", *how)
        out, scratch = self.path("o"), self.path("scratch")
        args = self.args(out, *how, more=["--scratch", scratch])
        r = spin(*args, env={"SPINSHARD_FAULT": f"rename:{2 * LAYERS}:0:kill"})
        self.assertNotEqual(r.rc, 0)
        done = sum(e["event"] == "errors" for e in events(out))
        self.assertIn(done, range(1, LAYERS), "killed between two layers")
        shutil.rmtree(scratch)
        r = self.good(*args, ranks=3)
        self.assertRegex(r.err, "activations of the finished layers are computed again")
        self.assertEqual(first, self.result(out))

    # ---- restarts; kills: test_gptq_kills.py ----

    def test_a_lost_layer(self):
        """A layer whose object is damaged is made again from the streams before it; those after it stay."""
        first, _ = self.run_one("ref", *GPTQ)
        out = self.path("o")
        r = spin(*self.args(out, *GPTQ), env={"SPINSHARD_FAULT": "rename:%d:0:kill" % (4 * LAYERS)})
        self.assertNotEqual(r.rc, 0)
        done = [e for e in events(out) if e["event"] == "errors"]
        self.assertGreater(len(done), 1, "no layer was done before the kill")
        objects = os.path.join(out, "run", "objects")
        state = open(os.path.join(out, "run", "state.json")).read()
        hex_of = re.search(r'"units":\{"1":\{"object":"(\w+)"', state).group(1)
        with open(os.path.join(objects, hex_of), "r+b") as f:
            f.write(b"\xff" * 16)
        r = self.good(*self.args(out, *GPTQ), ranks=2)
        self.assertRegex(r.err, "done again")
        self.assertEqual(first, self.result(out))

    # ---- what it is good for, what it tells ----

    def test_better_than_nearest(self):
        tail = ["--tail", 600]
        ppl = {}
        for method in ("rtn", "gptq"):
            out = self.path(method)
            self.good(*self.args(out, *GPTQ, f"weights.method={method}", "calib.windows=14"))
            ppl[method] = self.perplexity(out, TEXT, 100, *tail)["ppl"]
        whole = self.perplexity(STORIES, TEXT, 100, *tail)["ppl"]
        self.assertLess(ppl["gptq"] - whole, 0.6 * (ppl["rtn"] - whole), f"{ppl} {whole}")

    def test_errors(self):
        out = self.path("o")
        r = self.good(*self.args(out, *GPTQ))
        self.assertRegex(r.err, "error of outputs")
        told = self.errors(out)
        self.assertEqual(len(told), 7 * LAYERS)
        self.assertEqual(len({t["tensor"] for t in told}), 7 * LAYERS)
        for t in told:
            self.assertLess(t["after"], t["before"], t)
            self.assertGreater(t["damping"], 0)
        asymmetric = self.path("asymmetric")
        r = self.good(*self.args(asymmetric, *GPTAQ, "weights.target=layer", "weights.bits=3", "weights.group=channel", "activations.bits=8"))
        self.assertIn("windows held out", r.err)
        wide = self.good(*self.args(self.path("wide"), *GPTQ, "weights.method=gptaq", "weights.alpha=0"))
        self.assertIn("windows held out", wide.err, "with 16 bits of activations, and no correction")
        told = self.errors(asymmetric)
        self.assertEqual(len(told), 7 * LAYERS)
        for t in told:
            self.assertTrue(0 < t["after"] < 1.1 * t["before"] < 1.1, t)
        text = self.good("inspect", out, "--errors").out
        self.assertIn("model.layers.4.mlp.down_proj.weight", text)
        rtn = self.path("rtn")
        self.good(*self.args(rtn, "weights.method=rtn"))
        self.bad(3, ["no layer that GPTQ rounded"], "inspect", rtn, "--errors")

    # ---- bad input ----

    def test_few_tokens(self):
        r = self.run_one("few", *GPTQ, "calib.windows=1", "calib.window=16")[1]
        self.assertRegex(r.err, "16 calibration tokens for matrices of up to 172 columns; damping is raised")

    def test_repeated_windows(self):
        """A text that repeats tells a Hessian no more: the same warning, damping and errors as without repeats."""
        text = self.path("short.txt")
        with open(TEXT) as f, open(text, "w") as g:
            g.write(f.read()[:120])
        told = []
        for windows in (1, 7):
            out = self.path(f"o{windows}")
            r = self.good("quantize", "--model", STORIES, "--calib", text, "--out", out,
                          *settings(*GPTQ, "calib.window=40", f"calib.windows={windows}"))
            self.assertRegex(r.err, "40 calibration tokens for matrices of up to 172 columns; damping is raised")
            told.append(self.errors(out))
        for a, b in zip(*told):
            for key in ("damping", "before"):
                self.assertLess(abs(a[key] - b[key]), 1e-3 * a[key], f"{a} {b}")

    def test_no_text(self):
        out = self.path("o")
        self.bad(2, ["--calib"], "quantize", "--model", STORIES, "--out", out, *settings(*GPTQ), out=out)

    def test_not_finite(self):
        """Products that overflow: the first tensor that meets them and the window are named."""
        model = make_model.make(self.path("m"), "--layers", 3)
        path = os.path.join(model, "model.safetensors")
        tensors, meta = make_model.read_safetensors(path)
        name = "model.layers.0.mlp.down_proj.weight"
        dtype, shape, data = tensors[name]
        self.assertEqual(dtype, "F32")
        n = len(data) // 4
        tensors[name] = (dtype, shape, make_model.half_bytes([3e38 * (1 - 2 * (i % 2)) for i in range(n)], "F32"))
        make_model.write_safetensors(path, tensors, meta)
        out = self.path("o")
        self.bad(8, ["layers.1.self_attn.q_proj", "Hessian is not finite", r"calibration window \d"],
                 *self.args(out, *GPTQ, "rotate.r1=false", "rotate.r2=none", model=model), out=out, ranks=2)


if __name__ == "__main__":
    main()
