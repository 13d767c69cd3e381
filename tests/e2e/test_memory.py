#!/usr/bin/env python3
"""Memory as it was planned against what was taken, where buffers are far above the noise of libraries: learning R1 over a
grid, GPTQ on one rank and over a grid with little memory, packing, verifying."""
import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, settings  # noqa: E402

PROGRAM = 45 << 20  # what a run of a tiny model takes is less
LIBRARIES = 7 << 20  # what a plan allows for them (pipeline/plan/memory_plan.c): some of it may not be taken
FEW = ("calib.windows=2", "calib.window=128", "weights.scale=max")


class Memory(Case):
    def make(self, hidden, intermediate, heads, layers=1):
        self.model = self.path("m")
        subprocess.run([os.environ["SPINSHARD_TOOL_MODEL"], self.model, f"hidden={hidden}", f"intermediate={intermediate}",
                        f"heads={heads}", "kv_heads=2", f"layers={layers}"], check=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(os.path.join(STORIES, name), os.path.join(self.model, name))

    def phases(self, name, ranks, *more):
        out = self.path(name)
        self.good("quantize", "--model", self.model, "--out", out, "--calib", TEXT, "--recipe", "gptq-w4a16", *more,
                  ranks=ranks, limit=400)
        with open(os.path.join(out, "events.jsonl")) as f:
            found = [e for e in map(json.loads, f) if e["event"] == "end" and "planned_bytes" in e]
        return {e["phase"]: (e["planned_bytes"], e["peak_rss_bytes"]) for e in found}

    def check_phase(self, phases, name, at_least):
        """at_least: the buffers that the test is about are as large, so that 10 % are theirs and not the program's."""
        planned, taken = phases[name]
        with self.subTest(phase=name, planned=planned >> 20, taken=taken >> 20):
            self.assertGreater(planned - PROGRAM, at_least << 20)
            self.assertLessEqual(taken, 1.1 * planned)
            self.assertGreaterEqual(taken, 0.9 * (planned - LIBRARIES))

    def test_learned_rotation(self):
        """R1 of 32 MiB: five parts a cell and its gradient; a commit must not copy them. Then one whole R1 to fuse with,
        which pack does not copy either, and which is gone when tars are read back."""
        self.make(2048, 2048, 16)
        phases = self.phases("learned", 2, *settings(
            "rotate.r1=true", "rotate.start=had", "activations.bits=4", "numerics.grid=2x1",
            "learn=[{objective: range, steps: 1, rows: 256}]", *FEW))
        self.check_phase(phases, "learn.0", 140)
        self.check_phase(phases, "gptq", 150)
        self.check_phase(phases, "pack", 50)
        self.assertLess(phases["verify"][1], phases["pack"][1] - (32 << 20))

    def test_little_memory(self):
        """Rows in parts, so that the factor of the widest Hessian is what counts."""
        self.make(512, 5632, 4)
        phases = self.phases("little", 1, "--mem", "480M", *settings(*FEW))
        self.check_phase(phases, "gptq", 250)

    def test_holes_of_the_heap(self):
        """What layers were read and fused in is no longer resident when the factor and the rows are taken."""
        self.make(640, 1600, 10, layers=2)
        self.check_phase(self.phases("holes", 1, *settings(*FEW)), "gptq", 60)


if __name__ == "__main__":
    main()
