#!/usr/bin/env python3
"""A job that plan wrote, submitted unchanged to a Slurm of four virtual nodes: it ends in a verified archive; preempted,
it is requeued, goes on, and ends in the same bytes; cancelled, it stays away until it is submitted again. Skipped where
no Slurm can be started."""
# ctest label: slow
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events  # noqa: E402
from spin import STORIES, TESTS, TEXT, Case, main, program, settings, skip, tar_hashes  # noqa: E402

SOURCE = os.path.dirname(TESTS)
UP, DOWN = (os.path.join(TESTS, "tools", name) for name in ("slurm_up.sh", "slurm_down.sh"))
NODES = 4
# Ranks of virtual nodes share two cores: none may wait without yielding.
ENV = {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1", "GRACE": "5", "SLURM_PORT_BASE": str(17000 + os.getpid() % 97 * 20)}


def recipe(steps):
    learn = f"learn=[{{objective: range, steps: {steps}, rows: 2048}}]"
    return ["--model", STORIES, "--calib", TEXT,
            *settings("weights.group=channel", "activations.bits=4", "calib.window=64", "calib.windows=8", learn)]


def run(*words, check=True):
    r = subprocess.run(list(map(str, words)), env=ENV, capture_output=True, text=True, timeout=120)
    if check and r.returncode:
        raise AssertionError(f"{words}: exit code {r.returncode}\n{r.stdout}{r.stderr}")
    return r.stdout


class Slurm(Case):
    def submit(self, name, how, nodes=NODES):
        """Job id, log and output folder of a job that plan wrote."""
        out = self.path(name)
        self.good("plan", "--out", out, "--script", out + ".sh", "--nodes", nodes, "--ranks-per-node", 1, "--cores-per-rank", 1,
                  "--time", "20m", *how)
        return (*self.again(name), out)

    def again(self, name, *flags, env=None):
        """Job id and log of a job whose script is there."""
        r = subprocess.run(["sbatch", "--parsable", *flags, self.path(name + ".sh")], env={**ENV, **(env or {})}, cwd=self.dir,
                           capture_output=True, text=True, check=True)
        number = r.stdout.strip()
        return number, self.path(f"spinshard-{number}.log")

    def log(self, path):
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait(self, what, holds, limit=240):
        end = time.monotonic() + limit
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {limit} s")
            time.sleep(0.5)

    def state(self, number):
        return re.search(r"JobState=(\w+)", run("scontrol", "show", "job", number)).group(1)

    def wait_for_end(self, number):
        self.wait("the end of the job",
                  lambda: self.state(number) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), 900)

    def finish(self, number, log):
        self.wait_for_end(number)
        self.assertEqual(self.state(number), "COMPLETED", self.log(log))
        self.assertIn("verified", self.log(log))

    def alone(self, name, how):
        out = self.path(name)
        self.good("quantize", "--out", out, *how)
        return tar_hashes(out)

    def test_unchanged(self):
        number, log, out = self.submit("plain", recipe(50))
        self.finish(number, log)
        self.assertEqual(tar_hashes(out), self.alone("plain-alone", recipe(50)))
        self.assertIn("4 ranks (1 on this node)", self.log(log))

    def test_generic(self):
        """slurm/quantize.sh, with sizes from sbatch."""
        out, script = self.path("generic"), os.path.join(SOURCE, "slurm", "quantize.sh")
        r = subprocess.run(["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=1G",
                            "--time=20", script, "--out", out, *recipe(50)], env={**ENV, "SPINSHARD": program()},
                           cwd=self.dir, capture_output=True, text=True, check=True)
        number = r.stdout.strip()
        log = self.path(f"spinshard-{number}.log")
        self.finish(number, log)
        self.assertIn("4 ranks (2 on this node)", self.log(log))
        self.assertEqual(tar_hashes(out), self.alone("generic-alone", recipe(50)))

    def wait_for_event(self, out, event, more=1):
        """So many more events of that name than there are."""
        def count():
            return sum(e["event"] == event for e in events(out))
        there = count()
        self.wait(event, lambda: count() >= there + more)

    def test_chain(self):
        """Three jobs, the first of which is told that its time is over: the second goes on and ends, the third is called off.
        And nodes or a partition that are not there are refused, as Slurm has them."""
        out, job = self.path("chain"), self.path("chain.sh")
        args = ["plan", "--out", out, "--script", job, "--ranks-per-node", 1, "--cores-per-rank", 1, "--time", "20m", *recipe(1500)]
        self.bad(2, ["no partition nowhere"], *args, "--partition", "nowhere")
        self.bad(6, [f"main has {NODES} nodes"], *args, "--nodes", NODES + 1, "--partition", "main")
        self.good(*args, "--nodes", NODES, "--partition", "main", "--chain", 3)
        r = subprocess.run(["bash", job], env=ENV, cwd=self.dir, capture_output=True, text=True, check=True)
        first, second, third = re.findall(r"^(\d+): job", r.stdout, re.M)
        self.wait_for_event(out, "step")
        run("scancel", "--signal=USR1", "--batch", first)
        self.finish(second, self.path(f"spinshard-{second}.log"))
        self.assertIn("the next job of the chain goes on", self.log(self.path(f"spinshard-{first}.log")))
        self.assertEqual(self.state(third), "CANCELLED")
        self.assertEqual(tar_hashes(out), self.alone("chain-alone", recipe(1500)))

    def test_measured_links(self):
        """On three nodes of two ranks every pair is on two nodes, and the plan goes by what they measured."""
        r = subprocess.run(["srun", "--mpi=pmix", "-N3", "-n6", program(), "plan", "--measure", "--model", STORIES, "--nodes", "4",
                            "--json"], env=ENV, capture_output=True, text=True, timeout=120)
        self.assertEqual(r.returncode, 0, r.stderr)
        said = re.search(r"3 pair\(s\) of ranks on different nodes: (\S+) GB/s a node, (\S+) us a short message\n", r.stderr)
        rates = json.loads(r.stdout)["rates"]
        self.assertEqual(rates["network_from"], "measured between 3 nodes")
        self.assertAlmostEqual(rates["network"] * 1e-9 / float(said[1]), 1, delta=0.01)
        self.assertAlmostEqual(rates["latency_s"] * 1e6 / float(said[2]), 1, delta=0.01)

    def test_installed(self):
        """A script of a site runs from where it was installed, with the program that was installed with it."""
        out, prefix = self.path("site out"), self.path("some where")
        subprocess.run(["cmake", "--install", os.path.dirname(program()), "--prefix", prefix], check=True, capture_output=True)
        script = os.path.join(prefix, "share", "spinshard", "slurm", "lumi-c", "quantize.sh")
        env = {k: v for k, v in ENV.items() if k != "SPINSHARD"}
        r = subprocess.run(["sbatch", "--parsable", "--partition=main", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1",
                            "--mem=1G", "--time=20", script, "--out", out, *recipe(20)], env=env, cwd=self.dir,
                           capture_output=True, text=True, check=True)
        number = r.stdout.strip()
        self.finish(number, self.path(f"spinshard-{number}.log"))

    def cancel(self, number, log):
        run("scancel", number)
        self.wait("the end", lambda: self.state(number) not in ("RUNNING", "COMPLETING"))
        self.assertEqual(self.state(number), "CANCELLED", self.log(log))
        self.assertIn("Restarts=0", run("scontrol", "show", "job", number))

    def test_cancelled(self):
        """scancel ends the job for good, whatever the run was doing; a new job goes on from there."""
        number, log, out = self.submit("cancelled", recipe(1000))
        for event in ("start", "step", "commit"):
            self.wait_for_event(out, event)
            self.cancel(number, log)
            number, log = self.again("cancelled")
        self.finish(number, log)
        self.assertEqual(tar_hashes(out), self.alone("cancelled-alone", recipe(1000)))

    def test_preempted(self):
        number, log, out = self.submit("long", recipe(3000))
        self.wait_for_event(out, "step")
        run("sbatch", "-p", "urgent", "--exclusive", "-N", NODES, "-n", NODES, "--output", self.path("urgent.log"), "--wrap",
            "sleep 1")
        self.finish(number, log)
        self.assertIn("Restarts=1", run("scontrol", "show", "job", number))
        self.assertIn("goes on after step", self.log(log))
        self.assertEqual(tar_hashes(out), self.alone("long-alone", recipe(3000)))


if __name__ == "__main__":
    if not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))) or os.geteuid():
        skip("no Slurm that could be started here")
    cluster = tempfile.mkdtemp(prefix="spinshard-slurm-")
    started = subprocess.run(["bash", UP, cluster, str(NODES), "2"], env=ENV, capture_output=True, text=True)
    ENV["SLURM_CONF"] = os.path.join(cluster, "slurm.conf")
    os.environ["SLURM_CONF"] = ENV["SLURM_CONF"]
    try:
        if started.returncode:
            skip("Slurm did not start: " + started.stderr[-300:])
        main()
    finally:
        subprocess.run(["bash", DOWN, cluster, "purge"], env=ENV, capture_output=True)
        shutil.rmtree(cluster, ignore_errors=True)
