#!/usr/bin/env python3
"""The bytes of an archive and the bits of an evaluation do not depend on ranks or threads."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, sha256, tar_hashes  # noqa: E402

LAYOUTS = [(0, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]  # (ranks, threads); ranks 0: no launcher


class Ranks(Case):
    def same(self, name, model, *more):
        first = None
        for ranks, threads in LAYOUTS:
            out = self.path(f"{name}-{ranks}-{threads}")
            self.good("quantize", "--model", model, "--out", out, *more, ranks=ranks, threads=threads)
            got = tar_hashes(out)
            for n in ("manifest.json", "rotations.safetensors", "recipe.yaml"):
                got[n] = sha256(os.path.join(out, n))
            first = first or got
            self.assertGreater(len(got), 3)
            self.assertEqual(first, got, f"{ranks} ranks, {threads} threads")
        return out

    def test_stories(self):
        self.same("s", STORIES, *settings("weights.group=channel", "archive.shard_bytes=100K"))

    def test_search_and_online(self):
        model = make_model.make(self.path("m"), "--biases", "--dtype", "BF16", "--shards", 2)
        self.same("g", model, *settings("weights.group=64", "weights.scale=search", "weights.symmetric=false",
                                        "rotate.r2=head", "rotate.online=[r3, r4]"))

    def test_more_ranks_than_layers(self):
        model = make_model.make(self.path("m"), "--layers", 1, "--untied")
        self.same("l", model, *settings("weights.group=64"))

    def test_eval(self):
        for more in (["--dtype", "fp32"], ["--dtype", "bf16"], ["--dtype", "fp64"],
                     ["--dtype", "fp32", *settings("activations.bits=4", "kv.bits=4")]):
            with self.subTest(more):
                got = {self.perplexity(STORIES, TEXT, 128, *more, ranks=r, threads=t)["nll"] for r, t in LAYOUTS}
                self.assertEqual(len(got), 1, got)


if __name__ == "__main__":
    main()
