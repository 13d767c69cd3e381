#!/usr/bin/env python3
"""Limits of the system come as a message and an exit code, never as a signal: size of files, CPU time, address space, a
full disk below stdout, readers of the log and of the result that are gone."""
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, command, environment, main, result_hashes, settings, tars  # noqa: E402

SPACE, NOFIT = 5, 6


class Limits(Case):
    def limited(self, limit, args, ranks=0):
        """A run whose processes, not the launcher, are below `ulimit LIMIT`."""
        words = command(args, ranks)
        at = len(words) - len(command(args))
        words = [*words[:at], "bash", "-c", f'ulimit {limit}; exec "$@"', "sh", *words[at:]]
        return subprocess.run(words, env=environment(), text=True, capture_output=True, timeout=120)

    def one_error(self, r, code):
        self.assertEqual(r.returncode, code, r)
        self.assertEqual(len(re.findall("spinshard: error:", r.stderr)), 1, r)

    def test_size_of_a_file(self):
        """At every size: at some the objects do not fit, at others the tar. The same command then goes on."""
        for kib in (1, 8, 60, 200, 380):
            out = self.path(f"out{kib}")
            words = ["quantize", "--model", STORIES, "--out", out]
            r = self.limited(f"-f {kib}", words)
            self.one_error(r, SPACE)
            self.assertRegex(r.stderr, r"File too large[\s\S]*ulimit -f")
            self.assertEqual(tars(out), [])
            self.good(*words, ranks=2)
            self.good("verify", out)

    def test_size_of_a_file_on_ranks(self):
        """The same with ranks, of a run that learns: its state does not fit, or an object, or the tar; nothing is lost."""
        words = ["--model", STORIES, "--calib", TEXT, *settings(
            "calib.windows=2", "calib.window=64", "activations.bits=4", "weights.method=gptq", "weights.group=channel",
            "learn=[{objective: range, steps: 25, rows: 64}]")]
        self.good("quantize", "--out", self.path("free"), *words)
        for ranks, kib in ((2, 8), (3, 60), (2, 200)):
            out = self.path(f"out{ranks}-{kib}")
            r = self.limited(f"-f {kib}", ["quantize", "--out", out, *words], ranks)
            self.one_error(r, SPACE)
            self.assertRegex(r.stderr, r"File too large[\s\S]*ulimit -f")
            self.assertEqual(tars(out), [])
            self.good("quantize", "--out", out, *words, ranks=ranks)
            self.assertEqual(result_hashes(out), result_hashes(self.path("free")))

    def test_result_on_a_full_disk(self):
        self.good("quantize", "--model", STORIES, "--out", self.path("out"))
        for words in (["verify", self.path("out"), "--json"], ["inspect", self.path("out"), "--tensors"]):
            with open("/dev/full", "w") as full:
                r = subprocess.run(command(words), env=environment(), text=True, stdout=full, stderr=subprocess.PIPE)
            self.one_error(r, SPACE)

    def test_readers_that_are_gone(self):
        """A pipe that nobody reads any more ends neither the work nor the run."""
        for stream in ("stdout", "stderr"):
            end, begin = os.pipe()
            os.close(end)  # writing now gives EPIPE
            out = self.path(stream)
            r = subprocess.run(command(["quantize", "--model", STORIES, "--out", out]), env=environment(),
                               **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: begin})
            os.close(begin)
            self.assertEqual(r.returncode, 0)
            self.good("verify", out)

    def test_closed_streams(self):
        """The files that are opened do not take their numbers, or the log would stand in them."""
        self.good("quantize", "--model", STORIES, "--out", self.path("open"))
        closed = command(["quantize", "--model", STORIES, "--out", self.path("closed")])
        subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "sh", *closed], env=environment(), check=True, timeout=120)
        self.assertEqual(result_hashes(self.path("closed")), result_hashes(self.path("open")))

    def test_address_space(self):
        """Never a crash: it is done, or told; what MPI itself cannot start without is told by MPI."""
        codes = set()
        for mib in (150, 200, 250, 300, 400, 600, 1200):
            out = self.path(f"out{mib}")
            r = self.limited(f"-v {mib << 10}", ["quantize", "--model", STORIES, "--out", out])
            codes.add(r.returncode)
            self.assertGreaterEqual(r.returncode, 0, f"{mib} MiB: a signal\n{r}")
            self.assertLess(r.returncode, 128, f"{mib} MiB: a signal\n{r}")
            if r.returncode == NOFIT:
                self.one_error(r, NOFIT)
            if mib >= 600:
                self.assertEqual(r.returncode, 0, f"{mib} MiB: a run without products\n{r}")
        self.assertIn(0, codes)

    def test_address_space_of_products(self):
        """OpenBLAS waits for its buffers for ever where there is no room for them: told before it is asked."""
        codes = []
        for mib in (250, 350, 3000):
            r = self.limited(f"-v {mib << 10}", ["quantize", "--model", STORIES, "--out", self.path(f"gptq{mib}"), "--calib", TEXT,
                                                 *settings("weights.method=gptq", "calib.windows=12", "calib.window=96")])
            codes.append(r.returncode)
            if r.returncode:
                self.one_error(r, NOFIT)
        self.assertIn(NOFIT, codes)
        self.assertEqual(codes[-1], 0)

    def test_what_status_advises(self):
        """The same command, where it helps: not after bad numbers, nor where runs die again at one place."""
        def status(out):
            r = self.good("status", out, "--json").json()
            self.assertIn(r["advice"], self.good("status", out).out)
            return r["advice"]
        out, words = self.path("full"), ["quantize", "--model", STORIES, "--out", self.path("full")]
        self.one_error(self.limited("-f 60", words), SPACE)
        self.assertRegex(status(out), "^make room .* goes on from here")
        self.good(*words)
        self.assertNotIn("advice", self.good("status", out, "--json").json())
        out = self.path("killed")
        words = ["quantize", "--model", STORIES, "--out", out]
        kill = {**environment(), "SPINSHARD_FAULT": "rename:3:0:kill"}  # while it packs
        self.one_error(self.limited("-f 200", words), SPACE)
        for again in (1, 2):
            r = subprocess.run(command(words), env=kill, capture_output=True, text=True)
            self.assertEqual(r.returncode, -9, r)
            want = "^run the same command again" if again == 1 else "same command will not help"
            self.assertRegex(status(out), want)
        self.good(*words)

    def test_cpu_time(self):
        """The soft limit on CPU time asks for a stop at a commit, as a preemption does."""
        out = self.path("out")
        words = ["quantize", "--model", STORIES, "--out", out, "--calib", os.path.join(os.path.dirname(STORIES), "stories.txt")]
        for pair in ("calib.window=64", "calib.windows=8", "activations.bits=4",
                     "learn=[{objective: ce, steps: 1000000, batch: 2, window: 64}]"):
            words += ["--set", pair]
        r = self.limited("-S -t 3", words)
        self.assertEqual(r.returncode, 75, r)
        self.assertIn("stopped at a commit as asked", r.stderr)
        self.assertNotIn("error", r.stderr)
        with open(os.path.join(out, "events.jsonl")) as f:
            self.assertEqual(json.loads(f.readlines()[-1])["event"], "stop")


if __name__ == "__main__":
    main()
