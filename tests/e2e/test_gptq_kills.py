#!/usr/bin/env python3
"""SIGKILL of random ranks while GPTQ rounds the layers: the same command goes on to the same bytes, a layer that
was committed is never done again, and nothing hangs.

SPINSHARD_KILLS: how many kills of each case (4). SPINSHARD_KILL_SEED: the seed of their times and ranks (1).
SPINSHARD_KILL_MODEL, SPINSHARD_KILL_TEXT: a model and a text of one's own, with SPINSHARD_KILL_SET="key=value ..."
(another case). A kill comes a random part of a layer after the start of a layer that is
drawn uniformly; later kills of a run also fall into the restart. Prints the layer that was at hand each time.
"""
import collections
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import Tail, events, kill_a_rank  # noqa: E402
from spin import STORIES, TEXT, Case, main, result_hashes, settings, start  # noqa: E402

KILLS = int(os.environ.get("SPINSHARD_KILLS", "4"))
SEED = int(os.environ.get("SPINSHARD_KILL_SEED", "1"))
LIMIT = int(os.environ.get("SPINSHARD_KILL_LIMIT", "120"))  # seconds of a whole run, after which it hangs
A_RUN = 3  # kills of one run, then it comes to its end
GPTQ = ("weights.method=gptq", "weights.group=channel", "weights.bits=3", "calib.windows=48", "calib.window=128")
GPTAQ = ("weights.method=gptaq", "weights.target=full", "weights.stream=quantized", "weights.group=channel",
         "weights.symmetric=false", "rotate.online=[r3]", "activations.bits=4", "kv.bits=4", "calib.windows=48",
         "calib.window=128")


class GptqKills(Case):
    def result(self, out):
        got = result_hashes(out, optional=("rotations.safetensors",))  # none without rotation
        self.assertGreater(len(got), 2)
        return got

    def told(self, out):
        """By layer, what was told of its tensors; after its commit a layer is not told again."""
        layers, final = {}, set()
        for e in events(out):
            if e["phase"] != "gptq":
                continue
            if e["event"] == "errors":
                self.assertNotIn(e["layer"], final, "a finished layer was done again")
                self.assertEqual(layers.setdefault(e["layer"], e["tensors"]), e["tensors"], "not the same again")
            elif e["event"] == "commit":
                final.add(e["done"] - 1)
        return layers

    def kill_in(self, args, out, layer, layer_s, rng):
        """Start, and kill a rank a random part of a layer after so many layers are done. Gives whether the run was
        still there, and the layer at hand."""
        done = len(self.told(out))
        p, tail, going = start(args, ranks=rng.choice((1, 2, 3))), Tail(out), False
        deadline = time.monotonic() + LIMIT
        while p.poll() is None and time.monotonic() < deadline and not (going and done >= layer):
            for e in tail.new():
                going |= e["phase"] == "gptq" and e["event"] == "start"
                done += e["event"] == "errors"
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, layer_s))
        r = kill_a_rank(p, rng)
        return r.rc != 0, len(self.told(out))

    def campaign(self, model, text, how, kills):
        rng = random.Random(SEED)
        words = ["quantize", "--model", model, "--calib", text, *settings(*how)]
        ref = self.path("ref")
        begin = time.monotonic()
        self.good(*words, "--out", ref, ranks=2, limit=LIMIT)
        seconds = time.monotonic() - begin
        want, want_told = self.result(ref), self.told(ref)
        layer_s = sum(e["seconds"] for e in events(ref) if e["event"] == "errors") / len(want_told)
        histogram, killed, rounds = collections.Counter(), 0, 0
        while killed < kills and rounds < 4 * kills:
            rounds += 1
            out = self.path(f"out{rounds}")
            args = [*words, "--out", out]
            drawn = sorted(rng.randrange(len(want_told)) for _ in range(A_RUN))
            for layer in drawn[:kills - killed]:
                there, at = self.kill_in(args, out, layer, layer_s, rng)
                if not there:
                    break  # it came to its end before the kill
                killed += 1
                histogram[at] += 1
            if not os.path.exists(os.path.join(out, "manifest.json")) or os.path.exists(os.path.join(out, "run")):
                self.good(*args, ranks=rng.choice((0, 1, 2, 3)), limit=LIMIT)
            self.assertEqual(want, self.result(out), f"round {rounds}")
            self.assertEqual(want_told, self.told(out), f"round {rounds}")
        self.good("verify", out)
        print(f"\n{killed} kills in {rounds} runs; a whole run takes {seconds:.1f} s, a layer {layer_s:.2f} s; layer at hand:")
        for at in sorted(histogram):
            print(f"  {at if at < len(want_told) else 'after them':>10} {histogram[at]:3d} {'#' * histogram[at]}")
        within = sum(n for at, n in histogram.items() if at < len(want_told))
        self.assertGreaterEqual(within, 0.5 * kills, "too few kills while layers were rounded")

    def test_shipped_model(self):
        self.campaign(STORIES, TEXT, GPTAQ, (KILLS + 1) // 2)

    def test_made_model(self):
        model = make_model.make(self.path("m"), "--intermediate", 352, "--layers", 4, "--untied")
        self.campaign(model, TEXT, GPTQ, KILLS)

    if os.environ.get("SPINSHARD_KILL_MODEL"):
        def test_own_model(self):
            self.campaign(os.environ["SPINSHARD_KILL_MODEL"], os.environ["SPINSHARD_KILL_TEXT"],
                          os.environ.get("SPINSHARD_KILL_SET", "weights.method=gptq").split(), KILLS)


if __name__ == "__main__":
    main()
