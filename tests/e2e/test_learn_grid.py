#!/usr/bin/env python3
"""R1 over a grid of more than one cell: the same bytes on any number of ranks that hold the grid, over stops and
kills; the grid and its threads are chosen once and kept; fewer ranks than cells are refused with the way out."""
import json
import os
import random
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import Tail, events, kill_a_rank  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, start, tar_hashes  # noqa: E402

MISMATCH, STOPPED = 7, 75
STEPS, LONG = 60, 300


def how(out, start_point="pca", grid="2x2", steps=STEPS, more=()):
    return ["quantize", "--model", STORIES, "--out", out, "--calib", TEXT,
            *settings("calib.windows=4", "calib.window=96", "activations.bits=4", "kv.bits=4", "rotate.online=[r3]",
                      f"rotate.start={start_point}", "learn=[{objective: range, steps: %d, rows: 2048}]" % steps,
                      *([f"numerics.grid={grid}"] if grid else []), *more)]


class Grid(Case):
    def result(self, out, steps=STEPS):
        losses = {}
        for e in events(out):
            if e["event"] == "step":
                self.assertEqual(losses.setdefault(e["step"], e["loss"]), e["loss"], "a step done again differs")
        self.assertEqual(len(losses), steps)
        names = ("rotations.safetensors", "manifest.json", "recipe.yaml")
        return {**tar_hashes(out), **{n: sha256(os.path.join(out, n)) for n in names}, "losses": losses}

    def stop_after(self, args, out, step, ranks, threads=1):
        """Stop a run at a commit after that step, as a batch system would."""
        p, tail = start(args, ranks=ranks, threads=threads), Tail(out)
        while p.poll() is None and not any(e.get("step", 0) >= step for e in tail.new()):
            time.sleep(0.001)
        p.send_signal(signal.SIGUSR1)  # mpirun passes it on
        r = finish(p)
        self.assertEqual(r.rc, STOPPED, f"\n{r}")
        return r

    def test_ranks(self):
        for start_point in ("pca", "orthogonal", "had"):
            with self.subTest(start_point):
                first = None
                for ranks in (4, 5, 6):
                    out = self.path(f"{start_point}{ranks}")
                    r = self.good(*how(out, start_point, more=("numerics.threads=1",)), ranks=ranks)
                    self.assertIn("grid of 2x2", r.err)
                    first = first or self.result(out)
                    self.assertEqual(first, self.result(out), f"{ranks} ranks")
                    self.good("verify", out, "--source", STORIES, "--equivalence", ranks=2)

    def test_close_to_one_cell(self):
        """The same steps but for rounding. The start is the same matrix, so the first loss is the same number; later R1
        differs by fp64 rounding, which shows where an entry then rounds to the other neighbour in bf16: an eighth bit, of
        one entry in each row of 64. A step that was not the same would show a hundred times as much."""
        got = {}
        for grid in ("1x1", "2x2", "2x1"):
            out = self.path(grid)
            self.good(*how(out, start_point="had", grid=grid), ranks=4)
            got[grid] = self.result(out)["losses"]
        for grid in ("2x2", "2x1"):
            self.assertEqual(got[grid][1], got["1x1"][1])
            for step in range(2, 6):
                self.assertAlmostEqual(got[grid][step] / got["1x1"][step], 1, delta=2 ** -8 / 64)
        self.assertGreater(abs(got["1x1"][5] / got["1x1"][1] - 1), 100 * 2 ** -8 / 64)

    def test_stops_keep_the_grid(self):
        """Grid and threads are those of the first start, on other ranks, threads and without being named again."""
        want_out = self.path("want")
        self.good(*how(want_out, steps=LONG), ranks=4, threads=1)
        want, out = self.result(want_out, LONG), self.path("out")
        self.stop_after(how(out, steps=LONG), out, 50, ranks=6)
        with open(os.path.join(out, "run", "state.json")) as f:
            fingerprint = json.loads(f.read())[0]["body"]["fingerprint"]
        self.assertEqual(fingerprint["recipe"]["numerics"]["grid"], "2x2")
        self.assertEqual(fingerprint["recipe"]["numerics"]["threads"], 1)
        for ranks in (1, 3):
            r = self.bad(MISMATCH, ["2x2", "needs 4", "at least that many ranks"], *how(out, grid="", steps=LONG), out=out,
                         ranks=ranks)
            self.assertIn("numerics.grid", r.err)
        self.bad(MISMATCH, [r"recipe\.numerics\.grid", "2x2", "1x1"], *how(out, grid="1x1", steps=LONG), out=out, ranks=4)
        self.stop_after(how(out, grid="", steps=LONG), out, 120, ranks=5, threads=2)
        self.good(*how(out, grid="", steps=LONG), ranks=4, threads=2)
        self.assertEqual(want, self.result(out, LONG))

    def test_kills(self):
        want_out, rng, kills = self.path("want"), random.Random(3), 0
        self.good(*how(want_out, steps=LONG), ranks=4)
        want, out = self.result(want_out, LONG), self.path("out")
        for step in (1, 50, 115, 175, 250):
            p, tail = start(how(out, grid=rng.choice(("", "2x2")) if step > 1 else "2x2", steps=LONG), ranks=rng.choice((4, 5, 6))), Tail(out)
            while p.poll() is None and not any(e.get("step", 0) >= step or e["phase"] == "round" for e in tail.new()):
                time.sleep(0.0005)
            kills += kill_a_rank(p, rng).rc != 0
        if not os.path.exists(os.path.join(out, "manifest.json")) or os.path.exists(os.path.join(out, "run")):
            self.good(*how(out, steps=LONG), ranks=4)
        self.assertGreaterEqual(kills, 3)
        self.assertEqual(want, self.result(out, LONG))

    def test_auto_at_large_sizes(self):
        """Of hidden 4096 the plan alone: which grid, and that a cell of four has a share of the bytes."""
        model = make_model.make(self.path("m"), "--layers", 1, "--shards", 1)
        with open(os.path.join(model, "config.json")) as f:
            config = json.load(f)
        config.update(hidden_size=4096, num_attention_heads=32, num_key_value_heads=1, head_dim=128, intermediate_size=64)
        with open(os.path.join(model, "config.json"), "w") as f:
            json.dump(config, f)
        header, end = {}, 0
        for name, shape in make_model.shapes(config).items():
            n = 2
            for side in shape:
                n *= side
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + n]}
            end += n
        text = json.dumps(header).encode()
        for name in os.listdir(model):
            if "safetensors" in name:
                os.remove(os.path.join(model, name))
        with open(os.path.join(model, "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.truncate(8 + len(text) + end)  # nothing of it is read
        args = ["quantize", "--model", model, "--out", self.path("out"), "--calib", TEXT, "--dry-run",
                *settings("calib.windows=1", "calib.window=16", "activations.bits=4", "learn=[{objective: range}]")]
        for ranks, says in ((4, "2x2"), (3, "2x1")):
            r = self.good(*args, ranks=ranks)
            self.assertIn(f"grid of {says}", r.err)
        self.assertIn("grid of 2x2", self.good(*args, "--set", "numerics.grid=2x2", ranks=5).err)
        self.assertNotIn("grid of", self.good(*args, ranks=1).err)


if __name__ == "__main__":
    main()
