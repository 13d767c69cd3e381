#!/usr/bin/env python3
"""What takes too long for a suite: jobs of `plan` under a Slurm of four virtual nodes that are preempted three times, with
0 and 30 s of grace; that run in slices of the shortest time limit which plan accepts; that lose a node; that are cancelled in
each phase; of which two are on one folder: at once, behind one that was suspended for 15 minutes, behind one that was killed on
other nodes. Each must end by itself, or where it was cancelled when it is submitted again, in the bytes of a run that nobody
disturbed. To be run by hand as root, with SPINSHARD and the other variables of a test (ctest -V -N shows them):

  python3 tests/slurm_campaign.py [preempted0 preempted30 slices node cancelled folder]
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
SILENT_S = float(os.environ.get("SPINSHARD_CAMPAIGN_SILENT", "900"))
ALL_PHASES = ["--model", slurm.STORIES, "--calib", slurm.TEXT, "--recipe", "scales-w4a4kv4",
              *slurm.settings("weights.group=channel", "weights.method=gptq", "rotate.online=[r3]", "calib.window=64",
                              "calib.windows=8", "learn=[{objective: range, steps: 4, rows: 256}]")]


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
            Campaign.bytes = self.alone("alone", slurm.recipe(STEPS))
        return Campaign.bytes

    def preempted(self, grace):
        number, log, out = self.submit("preempted", slurm.recipe(STEPS))
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
        number, log, out = self.submit("node", slurm.recipe(STEPS))
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

    def cancelled(self):
        """A rank waits at a known place of each phase until scancel wakes it, as it wakes all that it ends."""
        want = self.alone("phases-alone", ALL_PHASES)
        out = self.path("phases")
        self.good("plan", "--out", out, "--script", out + ".sh", "--nodes", slurm.NODES, "--ranks-per-node", 1,
                  "--cores-per-rank", 1, "--time", "20m", *ALL_PHASES)
        seen = []
        for fault in ("unit:1:0", "unit:2:0", "unit:3:0", "unit:4:0", "unit:4:0", "unit:5:0", "unit:7:0", "write:1:1", "open:45:0"):
            number, log = self.again("phases", env={"SPINSHARD_FAULT": fault + ":stop"})
            self.wait("a stopped rank", lambda n=number: stopped_ranks(n) or self.state(n) == "FAILED")
            seen.append(f"{fault} {events(out)[-1]['phase']}")
            self.cancel(number, log)
        number, log = self.again("phases")
        self.finish(number, log)
        assert tar_hashes(out) == want, "cancelled: other bytes"
        print(f"cancelled at {', '.join(seen)}: CANCELLED, not back, the same bytes when submitted again", flush=True)

    def refused(self, out):
        """A second job on the folder, on other nodes, ends with 7 and says who has it; gives the seconds that it took."""
        begin = time.monotonic()
        number, log = self.again(os.path.basename(out))
        self.wait_for_end(number)
        about = slurm.run("scontrol", "show", "job", number)
        assert "ExitCode=7:0" in about, about + self.log(log)
        return time.monotonic() - begin

    def folder(self):
        how, nodes = slurm.recipe(STEPS), slurm.NODES // 2
        want = self.want()
        number, log, out = self.submit("folder", how, nodes)
        other, other_log = self.again("folder")  # at once
        for job in (number, other):
            self.wait_for_end(job)
        ended = sorted(re.search(r"JobState=(\w+).*ExitCode=(\d+)", slurm.run("scontrol", "show", "job", j), re.S).groups()
                       for j in (number, other))
        assert ended == [("COMPLETED", "0"), ("FAILED", "7")], f"{ended}\n{self.log(log)}\n{self.log(other_log)}"
        assert tar_hashes(out) == want, "two at once: other bytes"
        print("two jobs at once: one COMPLETED, one FAILED with 7; same bytes", flush=True)

        number, log, out = self.submit("silent", how, nodes)
        self.wait_for_event(out, "commit", 2)
        slurm.run("scontrol", "suspend", number)
        time.sleep(SILENT_S)
        seconds = self.refused(out)
        slurm.run("scontrol", "resume", number)
        self.finish(number, log)
        assert tar_hashes(out) == want, "silent: other bytes"
        print(f"a second job after {SILENT_S:.0f} silent seconds of the first: 7 after {seconds:.1f} s; the first went on, same "
              "bytes", flush=True)

        number, log, out = self.submit("killed", how, nodes)
        self.wait_for_event(out, "commit", 2)
        hosts = slurm.run("squeue", "-h", "-j", number, "-o", "%N").strip()
        begin, starts = time.monotonic(), {e["slice"] for e in events(out)}
        slurm.run("scancel", "--signal=KILL", "--full", number)
        other, other_log = self.again("killed", f"--exclude={hosts}")
        self.wait("the other's start", lambda: {e["slice"] for e in events(out)} - starts)
        seconds = time.monotonic() - begin
        self.finish(other, other_log)
        assert tar_hashes(out) == want, "killed: other bytes"
        print(f"a job killed on {hosts}: taken over on {slurm.run('squeue', '-h', '-j', other, '-t', 'all', '-o', '%N').strip()} "
              f"{seconds:.1f} s after the kill, same bytes", flush=True)


def stopped_ranks(number):
    """Processes of a job that are stopped."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                of_job = f"SLURM_JOB_ID={number}".encode() in f.read().split(b"\0")
            with open(f"/proc/{pid}/stat") as f:
                if of_job and f.read().rsplit(")", 1)[1].split()[0] == "T":
                    found.append(int(pid))
        except OSError:
            pass
    return found


def campaign(name):
    grace = int(name[9:]) if name.startswith("preempted") else 0
    at = cluster(grace)
    c = Campaign("want")
    c.setUp()
    try:
        begin = time.monotonic()
        if name.startswith("preempted"):
            c.preempted(grace)
        elif name == "node":
            c.node(at)
        else:
            {"slices": c.slices, "cancelled": c.cancelled, "folder": c.folder}[name]()
        print(f"  {time.monotonic() - begin:.0f} s", flush=True)
    finally:
        c.tearDown()
        c.doCleanups()
        down(at)


if __name__ == "__main__":
    for word in sys.argv[1:] or ["preempted0", "preempted30", "slices", "node", "cancelled", "folder"]:
        campaign(word)
