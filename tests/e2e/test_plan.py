#!/usr/bin/env python3
"""plan: sizes of known models, exit codes, the script, and the plan of a run against what it took."""
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
import published  # noqa: E402
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, environment, main, settings, spin, tar_hashes  # noqa: E402

LEARN = "learn=[{objective: range, steps: 2, rows: 256}, {objective: ce, steps: 1, batch: 2, window: 32}]"


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f)


class Plan(Case):
    def plan(self, model, *more):
        return self.good("plan", "--model", model, "--json", *more).json()

    def published(self, name, **changes):
        return published.write(self.path(name), name, **changes)

    def test_llama2_70b(self):
        model = self.published("llama2-70b")
        began = os.times().children_user + os.times().children_system
        got = self.plan(model, *settings("weights.group=channel"), "--nodes", 4, "--ranks-per-node", 8,
                        "--cores-per-rank", 24, "--mem-per-node", "768G", "--cpu", "genoa")
        self.assertLess(os.times().children_user + os.times().children_system - began, 2)
        self.assertEqual(got["parameters"], 68976648192)
        self.assertEqual(got["read_bytes"], 137953296384)
        self.assertEqual(got["read_files"], 15)
        # codes of 80 layers at 4 bits, a scale of 2 bytes a row, two tables and the norms at 16 bits
        rows = 2 * 8192 + 2 * 1024 + 2 * 28672 + 8192
        tables = 2 * 2 * 32000 * 8192 + 2 * 161 * 8192
        want = 80 * (855638016 // 2 + 2 * rows) + tables
        self.assertLess(abs(got["archive_bytes"] / want - 1), 1e-4)
        self.assertTrue(got["fits"])

    def test_ranges(self):
        """By a table: up to twice as long; as short as counts may err by 1.5 where the core has its highest clock, 1.7 times
        that of Genoa with all cores busy, which Grace keeps to 1.1. What a disk takes has nothing to do with clocks: half to twice."""
        model = self.published("llama2-70b")
        for cpu, least in (("genoa", 1.5 * 1.7), ("grace", 1.5 * 1.1)):
            for p in self.plan(model, "--cpu", cpu, *settings("weights.group=channel"))["phases"]:
                want = max(2, least) if p["phase"] in ("pack", "verify") else least
                self.assertAlmostEqual(p["seconds"] / p["seconds_low"], want, places=6)
                self.assertAlmostEqual(p["seconds_high"] / p["seconds"], 2, places=6)

    def test_others(self):
        self.assertEqual(self.plan(self.published("llama1-7b"))["parameters"], 6738415616)
        for name in ("llama3.1-8b", "llama3.2-1b"):
            model = self.published(name, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
            self.bad(3, ["quantized by bitsandbytes"], "plan", "--model", model)

    def test_other_families(self):
        """From config.json alone: parameters, bytes to read, and a plan of the best recipe that fits 8 nodes."""
        for name, (_, parameters) in published.OTHERS.items():
            got = self.plan(published.write_config(self.path(name), name), "--recipe", "best-w4a16", "--nodes", 8,
                            "--ranks-per-node", 8, "--cores-per-rank", 24, "--mem-per-node", "256G", "--cpu", "genoa")
            self.assertEqual((got["parameters"], got["read_bytes"]), (parameters, 2 * parameters), name)
            self.assertTrue(got["fits"], name)
            # of 4.125 bits a weight of the linears in groups of 128; tables at 16
            self.assertTrue(0.25 < got["archive_bytes"] / got["read_bytes"] < 0.35, name)
            self.assertTrue(all(p["seconds"] > 0 for p in got["phases"]), name)

    def test_does_not_fit(self):
        args = ["plan", "--model", self.published("llama2-70b"), "--recipe", "range-w4a4kv4", "--ranks-per-node", 1]
        self.bad(6, ["smallest layout"], *args, "--mem-per-node", "32G")
        nodes = spin(*args, "--mem-per-node", "32G", "--json").json()["smallest"]["nodes"]
        self.assertGreater(nodes, 1)
        self.good(*args, "--mem-per-node", "32G", "--nodes", nodes)
        self.bad(6, ["needs"], *args, "--mem-per-node", "32G", "--nodes", nodes - 1)

    def test_jobs_too_short(self):
        """A job that never comes to the end of the capture is refused, and the time that is named is enough."""
        args = ["plan", "--model", self.published("llama2-70b"), "--recipe", "best-w4a16", "--nodes", 8,
                "--ranks-per-node", 2, "--cores-per-rank", 96, "--mem-per-node", "256G", "--cpu", "genoa"]
        r = self.bad(6, ["finish nothing of capture", r"give --time \d+m"], *args, "--time", "10m")
        least = int(re.search(r"give --time (\d+)m", r.err).group(1))
        got = self.good(*args, "--time", f"{least}m", "--json").json()["jobs"]
        self.assertGreater(got["n"], 1)
        self.assertGreater(got["again_s"], 0)
        self.bad(6, ["finish nothing"], *args, "--time", f"{least - 2}m")

    def test_rotations_of_heads(self):
        """What `sites` finds and holds of rotations of heads, of all layers on every rank: R3 from keys in fp64 between the ranks, as a
        rotation in fp64 and fp32, and while it is found the moments in 128 bits of the rank's layers; R2 of its layers. One
        rank has all of 80 layers with 8 heads of 128 channels."""
        model = self.published("llama2-70b")

        def planned(*words):
            got = self.plan(model, "--recipe", "best-w4a4kv4", "--cores-per-rank", 192, "--cpu", "genoa",
                            "--mem-per-node", "768G", *settings("weights.group=channel", *words))
            return {p["phase"]: p["bytes"] for p in got["phases"]}["sites"]
        heads, square = 80 * 8, 128 * 128
        whole = planned()
        self.assertEqual(whole - planned("rotate.r3=had"), heads * (square * (8 + 8 + 4) + 128 * 129 * 16))
        self.assertEqual(planned("rotate.r2=head") - whole, 80 * 7 * square * (8 + 8 + 4))

    def test_samples(self):
        """Inputs are sampled for what has ranges: a cache of integers, not one of FP8, whose plan is that of no cache."""
        def sampled(*words):
            got = self.plan(STORIES, "--recipe", "best-w4a16", *settings("weights.group=channel", *words))
            return {b["name"]: b["bytes"] for b in got["phases"][0]["buffers"]}.get("sampled rows", 0)
        self.assertEqual([sampled(), sampled("kv.bits=8", "kv.format=fp8")], [0, 0])
        self.assertGreater(sampled("kv.bits=8"), 0)

    def test_captured(self):
        """What is captured is kept where that costs a quarter of the capture at most: 16 times the text is 16 times the passes, but
        as many rows. They are in OUT/run before the units of the archive."""
        args = [self.published("llama2-70b"), "--recipe", "scales-w4a4kv4", "--cores-per-rank", 192, "--cpu", "genoa",
                "--mem-per-node", "768G", *settings("weights.group=channel", "calib.windows=64")]
        short, long = (self.plan(*args, *settings(f"calib.window={n}")) for n in (64, 1024))
        self.assertEqual([p["phases"][0]["kept_bytes"] > 0 for p in (short, long)], [False, True])
        self.assertEqual(short["run_bytes"], short["archive_bytes"])
        self.assertEqual(long["run_bytes"], max(long["archive_bytes"], long["phases"][0]["kept_bytes"]))

    def test_network(self):
        """All nodes send at once what goes from node to node: that time at the node's rate, 0.8 of its line's."""
        args = [self.published("llama2-70b"), "--recipe", "best-w4a16", "--nodes", 8, "--ranks-per-node", 2, "--cores-per-rank",
                96, "--mem-per-node", "256G", "--cpu", "genoa", "--network"]
        slow, fast = ({p["phase"]: p for p in self.plan(*args, net)["phases"]} for net in ("25GbE", "1T"))
        for name in ("capture", "learn.0", "gptq"):
            bytes_of_node = slow[name]["network_bytes"] / 8
            want = bytes_of_node * (1 / (0.8 * 25e9 / 8) - 1 / 2 ** 40)
            self.assertAlmostEqual((slow[name]["seconds"] - fast[name]["seconds"]) / want, 1, delta=1e-6, msg=name)
        self.bad(2, ["25GbE"], "plan", "--model", STORIES, "--network", "string and cans")

    def test_refused(self):
        d = make_model.make(self.path("bnb"))
        config = json.loads(read(os.path.join(d, "config.json")))
        for q in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"load_in_8bit": True}):
            config["quantization_config"] = q
            write_json(os.path.join(d, "config.json"), config)
            self.bad(3, ["bitsandbytes"], "plan", "--model", d)
            for name in os.listdir(d):
                if name.endswith(".safetensors"):
                    os.remove(os.path.join(d, name))
        self.bad(2, ["abacus", "genoa"], "plan", "--model", STORIES, "--cpu", "abacus")
        self.bad(2, ["--out"], "plan", "--model", STORIES, "--script", self.path("job.sh"))

    def test_headers_or_config_alone(self):
        whole = self.plan(STORIES)
        alone = self.path("alone")
        os.mkdir(alone)
        config = json.loads(read(os.path.join(STORIES, "config.json")))
        config["torch_dtype"] = "float32"
        write_json(os.path.join(alone, "config.json"), config)
        got = self.plan(alone)
        for key in ("parameters", "read_bytes", "archive_bytes", "tars"):
            self.assertEqual(whole[key], got[key], key)

    def test_script(self):
        job = self.path("job.sh")
        self.good("plan", "--model", STORIES, "--out", self.path("it's out"), "--script", job, "--nodes", 2,
                  "--ranks-per-node", 2, "--cores-per-rank", 3, "--time", "2h", *settings("weights.group=channel"))
        self.assertEqual(subprocess.run(["bash", "-n", job]).returncode, 0)
        text = read(job)
        for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --cpus-per-task=3", "#SBATCH --requeue",
                     "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@60", "--stop-before 60s", "#SBATCH --time=2:00:00",
                     "#SBATCH --mem=0",
                     "--kill-on-bad-exit=1", "OMP_NUM_THREADS=3", "'weights.group=channel'"):
            self.assertIn(line, text)
        self.assertIn(os.path.realpath(STORIES), text)

    def test_script_of_a_site(self):
        """Flags and lines of a site go in; a script that was edited stays; one that must fail is not written."""
        job, prologue, out = self.path("job.sh"), self.path("modules.sh"), self.path("out")
        with open(prologue, "w") as f:
            f.write("module load openmpi # 50 % of it")
        args = ["plan", "--model", STORIES, "--out", out, "--script", job, "--nodes", 2, "--cpu", "genoa",
                *settings("weights.group=channel")]
        site = ["--partition", "big", "--account", "me", "--qos", "long", "--mail-user", "a@b.c", "--prologue", prologue,
                "--sbatch", "--constraint=genoa", "--sbatch", "--licenses=x:1", "--time", "600"]
        self.good(*args, *site)
        text = read(job)
        for line in ("#SBATCH --job-name=stories260K-w4-channel", "#SBATCH --partition=big", "#SBATCH --account=me",
                     "#SBATCH --qos=long", "#SBATCH --mail-type=END,FAIL --mail-user=a@b.c", "#SBATCH --constraint=genoa",
                     "#SBATCH --licenses=x:1", "#SBATCH --time=10:00:00", "module load openmpi # 50 % of it"):
            self.assertIn("\n" + line + "\n", text)
        self.assertLess(text.rindex("#SBATCH"), text.index("module load"))
        self.assertLess(text.index("module load"), text.index("set -u"))
        self.assertEqual(subprocess.run(["bash", "-n", job]).returncode, 0)
        self.good(*args)  # it is as plan left it
        with open(job, "a") as f:
            f.write("# mine\n")
        self.bad(2, ["edited", "--force"], *args)
        self.assertTrue(read(job).endswith("# mine\n"))
        self.good(*args, "--force")
        before = read(job)
        self.bad(2, ["calibration text", "--calib"], *args, *settings("weights.method=gptq"))
        self.bad(3, ["nothing.txt"], *args, "--calib", self.path("nothing.txt"))
        self.bad(3, ["none.sh"], *args, "--prologue", self.path("none.sh"))
        self.bad(2, ["not a flag"], *args, "--sbatch", "account=x")
        self.bad(2, ["more than one line"], *args, "--sbatch", "--account=x\nrm -rf /")
        self.bad(2, ["D-HH:MM:SS"], *args, "--time", "1:2:3:4")
        os.makedirs(out)
        with open(os.path.join(out, "manifest.json"), "w") as f:
            f.write("{}")
        self.bad(2, ["complete archive"], *args)
        self.assertEqual(read(job), before)

    def test_nodes_that_slurm_has(self):
        """sinfo is asked with --script: a partition that is named must have such nodes, the default one is a warning."""
        tools = self.path("bin")
        os.mkdir(tools)
        with open(os.path.join(tools, "sinfo"), "w") as f:
            f.write("#!/bin/sh\necho 'small* 8 16 31000 1:00:00'\necho 'big 2 128 250000 infinite'\necho 'big 3 256+ 500000 infinite'\n")
        os.chmod(f.name, 0o755)
        env = {"PATH": tools + os.pathsep + os.environ["PATH"]}

        def ask(code, *more):
            r = spin("plan", "--model", STORIES, "--out", self.path("o"), "--script", self.path("j.sh"), "--force", "--cpu",
                     "genoa", "--ranks-per-node", 2, "--mem-per-node", "8G", *settings("weights.group=channel"), *more, env=env)
            self.assertEqual(r.rc, code, r)
            return r
        ask(0, "--nodes", 5, "--cores-per-rank", 64, "--partition", "big")
        r = ask(6, "--nodes", 4, "--cores-per-rank", 128, "--partition", "big")
        self.assertIn("partition big has 3 nodes with 256 CPUs", r.err)
        self.assertIn("of 5 (the largest: 256 CPUs, 488.28 GiB); the plan takes 4", r.err)
        self.assertIn("no partition none", ask(2, "--partition", "none").err)
        self.assertIn("end after 1:00:00, and --time is 2:00:00", ask(6, "--cores-per-rank", 8, "--time", "2h", "--partition", "small").err)
        r = ask(0, "--nodes", 9, "--cores-per-rank", 8)
        self.assertIn("warning: partition small has 8 nodes", r.err)
        self.assertNotIn("partition", ask(0, "--nodes", 8, "--cores-per-rank", 8).err)

    def test_ranks_that_do_not_begin(self):
        """A launcher that fails before a rank has said anything, as on a node that comes back: the job tries again, at most
        three times, then puts itself back into the queue. srun and its like are played."""
        job, tools = self.path("job.sh"), self.path("bin")
        os.mkdir(tools)
        for name, text in (("srun", """case $1 in --mpi=list) echo pmix; exit ;; esac
n=$(cat "$PLAY/n"); echo $((n + 1)) >"$PLAY/n"
[ "$n" -ge "$FAILS" ] || exit 137
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""), ("scontrol", 'echo "scontrol $*" >>"$PLAY/said"; echo JobState=RUNNING StartTime=2026-01-01T00:00:00\n'),
                           ("squeue", "exit 1\n"), ("sleep", 'echo "sleep $*" >>"$PLAY/said"\n')):
            with open(os.path.join(tools, name), "w") as f:
                f.write("#!/bin/sh\n" + text)
            os.chmod(f.name, 0o755)
        for fails, code, said in ((2, 0, ["sleep 20"] * 2), (9, 9, ["sleep 20"] * 3 + ["scontrol requeue 7"])):
            play = self.path(f"play{fails}")
            os.mkdir(play)
            with open(os.path.join(play, "n"), "w") as f:
                f.write("0")
            self.good("plan", "--model", STORIES, "--out", os.path.join(play, "out"), "--script", job, "--force", "--cpu", "genoa",
                      *settings("weights.group=channel"))
            env = {**environment(), "PATH": tools + os.pathsep + os.environ["PATH"], "PLAY": play, "FAILS": str(fails),
                   "SLURM_JOB_ID": "7"}
            r = subprocess.run(["bash", job], env=env, capture_output=True, text=True, timeout=100)
            self.assertEqual(r.returncode, code, r.stderr)
            with open(os.path.join(play, "said")) as f:
                self.assertEqual([s for s in f.read().splitlines() if "show" not in s], said)
            self.assertEqual(os.path.exists(os.path.join(play, "out", "manifest.json")), code == 0)

    def test_of_a_run(self):
        """Every phase has its plan, the same as `plan` makes for that layout but for the program itself."""
        more = [*settings("activations.bits=4", "calib.window=64", "calib.windows=4", "rotate.start=pca",
                          "weights.group=channel", LEARN)]
        for ranks in (1, 2):
            out = self.path(f"o{ranks}")
            r = self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *more, ranks=ranks)
            self.assertIn("plan: capture", r.err)
            ends = {}
            for line in read(os.path.join(out, "events.jsonl")).splitlines():
                event = json.loads(line)
                if event["event"] == "end" and event["phase"] != "load":
                    ends[event["phase"]] = event
            got = {p["phase"]: p for p in self.plan(STORIES, "--ranks-per-node", ranks, *more)["phases"]}
            self.assertEqual(list(ends), list(got))
            for name, end in ends.items():
                self.assertGreaterEqual(end["planned_seconds"], 0.005)  # the fixed costs of any phase
                self.assertLess(end["planned_seconds_low"], end["planned_seconds"])
                self.assertAlmostEqual(end["planned_seconds_high"] / end["planned_seconds"], 2, places=6)
                base = got[name]["buffers"]
                program = [b["bytes"] for b in base if b["name"] == "program"][0]
                self.assertLess(abs(end["planned_bytes"] - got[name]["bytes"]), program, name)

    def check_sent(self, name, ranks, *how, nodes=None, model=STORIES):
        """What ranks counted in each phase of the plan, against the plan: within 10 %. nodes: that ranks are taken to be on."""
        out = self.path(name)
        env = {"SPINSHARD_TEST_NODES": ",".join(map(str, nodes))} if nodes else None
        r = self.good("quantize", "--model", model, "--out", out, "--calib", TEXT, *how, ranks=ranks, env=env)
        ends = [e for e in events(out) if e["event"] == "end" and "planned_sent_bytes" in e]
        for e in ends:
            with self.subTest(run=name, phase=e["phase"]):
                self.assertEqual(len(e["sent_bytes_by_rank"]), ranks)
                self.assertEqual(sum(e["sent_bytes_by_rank"]), e["sent_bytes"])
                self.assertAlmostEqual(e["sent_bytes"] / e["planned_sent_bytes"], 1, delta=0.1)
                if nodes:
                    self.assertAlmostEqual(e["network_bytes"] / e["planned_network_bytes"], 1, delta=0.1)
                    self.assertLess(e["network_bytes"], e["sent_bytes"])
                else:
                    self.assertEqual((e["network_bytes"], e["planned_network_bytes"]), (0, 0))
        self.assertIn("ranks sent each other", r.err)
        return {e["phase"] for e in ends}

    def test_sent(self):
        """On one node; and on two, where the archive is the same and what all get or sum goes from node to node once."""
        few = ("weights.group=channel", "calib.window=64", "calib.windows=12", "activations.bits=4")
        by_range = ("--recipe", "scales-w4a4kv4", *settings(
            *few, "weights.method=gptq", "rotate.online=[r3]", "learn=[{objective: range, steps: 5, rows: 256}]"))
        by_ce = ("--replicas", 2, "--stages", 2, *settings(
            *few, "weights.method=gptaq", "numerics.gptq_grid_from=100", "numerics.gptq_grid=2x1", "numerics.threads=1",
            "learn=[{objective: ce, steps: 3, batch: 2, window: 64}]"))
        with_scales = ("--replicas", 2, "--stages", 2, *settings(
            *few, "kv.bits=4", "rotate.r2=head", "rotate.online=[r3]", "scale.pairs=[norm, vo, qk, ud]", "scale.start=ones",
            "learn=[{objective: kl-top, top_k: 50, steps: 3, batch: 2, window: 64, lr_scale: 0.01}]"))
        self.assertEqual(self.check_sent("scales", 4, *with_scales), {"learn.0", "round", "pack", "verify"})
        # R1 so wide that it is most of what is sent, and so few steps that what goes before and after them counts.
        wide = make_model.make(self.path("wide"), "--hidden", 256, "--intermediate", 256, "--layers", 1)
        of_r1 = settings(*few, "rotate.r2=none", "numerics.grid=2x1", "numerics.threads=1",
                         "learn=[{objective: range, steps: 3, rows: 256}]")
        self.assertEqual(self.check_sent("r1", 2, *of_r1, model=wide), {"capture", "learn.0", "round", "pack", "verify"})
        for nodes in None, (0, 0, 1):
            self.assertEqual(self.check_sent(f"range{nodes}", 3, *by_range, nodes=nodes),
                             {"capture", "learn.0", "scales", "sites", "gptq", "pack", "verify"})
        for nodes in None, (0, 0, 1, 1):
            self.assertEqual(self.check_sent(f"ce{nodes}", 4, *by_ce, nodes=nodes), {"learn.0", "gptq", "pack", "verify"})
        for name, nodes in ("range", "(0, 0, 1)"), ("ce", "(0, 0, 1, 1)"):
            self.assertEqual(tar_hashes(self.path(f"{name}None")), tar_hashes(self.path(name + nodes)))
        self.assertEqual(self.check_sent("round", 2, *settings(*few, "learn=[]")), {"round", "pack", "verify"})

    def test_measured_links(self):
        """Three ranks of one host: one pair is measured, said to be no network, and the first rank alone plans."""
        r = self.good("plan", "--model", STORIES, "--measure", "--nodes", 2, "--json", ranks=3)
        said = re.search(r"1 pair\(s\) of ranks within the one node: (\S+) GB/s a node, (\S+) us a short message; this is no", r.err)
        self.assertGreater(float(said[1]), 0)
        self.assertGreater(float(said[2]), 0)
        rates = r.json()["rates"]
        self.assertTrue(rates["measured"])
        self.assertEqual((rates["network"], rates["latency_s"]), (10e9, 2e-6))
        self.assertEqual(self.plan(STORIES, "--network", "25GbE")["rates"]["network_from"], "--network")

    def test_too_small(self):
        self.bad(6, ["--mem"], "quantize", "--model", STORIES, "--out", self.path("o"), "--mem", "16M")
        self.assertFalse(os.path.exists(self.path("o")))


if __name__ == "__main__":
    main()
