#!/usr/bin/env python3
"""What takes too long for a suite: jobs of `plan` under a Slurm of four virtual nodes that are preempted three times, with
0 and 30 s of grace; that run in slices of the shortest time limit which plan accepts; that lose a node. Each must end by
itself in the bytes of a run that nobody disturbed. To be run by hand as root, with SPINSHARD and the other variables of a
test (ctest -V -N shows them):

  python3 tests/slurm_campaign.py [preempted0 preempted30 slices node]
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "e2e"), os.path.join(HERE, "tools")]
import test_slurm as slurm  # noqa: E402
from kills import events  # noqa: E402
from spin import tar_hashes  # noqa: E402

STEPS = int(os.environ.get("SPINSHARD_CAMPAIGN_STEPS", "12000"))


def cluster(grace):
    """A Slurm with so much grace; returns its folder."""
    at = tempfile.mkdtemp(prefix="spinshard-slurm-")
    slurm.ENV["GRACE"] = str(grace)
    subprocess.run(["bash", slurm.UP, at, str(slurm.NODES), "2"], env=slurm.ENV, check=True, capture_output=True)
    slurm.ENV["SLURM_CONF"] = os.environ["SLURM_CONF"] = os.path.join(at, "slurm.conf")
    return at


def down(at):
    subprocess.run(["bash", slurm.DOWN, at, "purge"], env=slurm.ENV, capture_output=True)
    shutil.rmtree(at, ignore_errors=True)
    del slurm.ENV["SLURM_CONF"], os.environ["SLURM_CONF"]


class Campaign(slurm.Slurm):
    """The helpers of the test, without its tests."""

    def told(self, number, log, out, name, least=0):
        self.finish(number, log)
        assert tar_hashes(out) == self.want(), f"{name}: other bytes"
        restarts = re.search(r"Restarts=(\d+)", slurm.run("scontrol", "show", "job", number)).group(1)
        assert int(restarts) >= least, f"{name}: {restarts} requeues"
        starts = {}
        for e in events(out):
            if e["event"] == "step":
                starts.setdefault(e["slice"], []).append(e["step"])
        again = sum(max(0, max(a) - min(b) + 1) for a, b in zip(list(starts.values()), list(starts.values())[1:]))
        print(f"{name}: same bytes; {restarts} requeues, steps of the starts "
              f"{[(min(s), max(s)) for s in starts.values()]}, {again} of {STEPS} done twice", flush=True)

    def want(self):
        if not hasattr(Campaign, "bytes"):
            Campaign.bytes = self.alone("alone", STEPS)
        return Campaign.bytes

    def preempted(self, grace):
        number, log, out = self.submit("preempted", STEPS)
        for _ in range(3):
            self.wait_for_event(out, "commit", 2)
            urgent = slurm.run("sbatch", "--parsable", "-p", "urgent", "--exclusive", "-N", slurm.NODES, "-n", slurm.NODES,
                               "--output", self.path("urgent.log"), "--wrap", "sleep 1").strip()
            self.wait("the urgent job", lambda n=urgent: self.state(n) == "COMPLETED")
        self.told(number, log, out, f"preempted 3 times, grace {grace} s", 3)

    def slices(self):
        """The shortest whole number of minutes, which is what Slurm counts in."""
        out, job = self.path("slices"), self.path("slices.sh")
        for minutes in range(1, 60):
            r = subprocess.run([slurm.program(), "plan", "--out", out, "--script", job, "--nodes", str(slurm.NODES),
                                "--ranks-per-node", "1", "--cores-per-rank", "1", "--time", f"{minutes}m",
                                *map(str, slurm.recipe(STEPS))], env=slurm.ENV, capture_output=True, text=True)
            if r.returncode == 0:
                break
            assert r.returncode == 6, r.stderr
        number, log = self.again("slices")
        self.told(number, log, out, f"slices of {minutes} min", 1)

    def node(self, at):
        """slurmd, its steps and the rank of the third node vanish at once; the node comes back a minute later."""
        number, log, out = self.submit("node", STEPS)
        self.wait_for_event(out, "commit", 2)
        with open(os.path.join(at, "run", "slurmd.node3.pid")) as f:
            daemon = int(f.read())
        lost = [daemon]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if b"SLURMD_NODENAME=node3\0" in f.read() + b"\0":
                        lost.append(int(pid))
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    if f.read().startswith(b"slurmstepd: [" + number.encode()) and os.path.exists(f"/proc/{pid}/ns/uts"):
                        if os.readlink(f"/proc/{pid}/ns/uts") == os.readlink(f"/proc/{daemon}/ns/uts"):
                            lost.append(int(pid))
            except OSError:
                pass
        for pid in lost:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(60)
        subprocess.run(["bash", slurm.UP, at, str(slurm.NODES), "2"], env=slurm.ENV, capture_output=True, check=True)
        self.told(number, log, out, f"a node lost ({len(lost)} processes killed)", 1)


def campaign(name):
    grace = int(name[9:]) if name.startswith("preempted") else 0
    at = cluster(grace)
    c = Campaign("want")
    c.setUp()
    try:
        begin = time.monotonic()
        if name.startswith("preempted"):
            c.preempted(grace)
        elif name == "slices":
            c.slices()
        else:
            c.node(at)
        print(f"  {time.monotonic() - begin:.0f} s", flush=True)
    finally:
        c.tearDown()
        c.doCleanups()
        down(at)


if __name__ == "__main__":
    for word in sys.argv[1:] or ["preempted0", "preempted30", "slices", "node"]:
        campaign(word)
