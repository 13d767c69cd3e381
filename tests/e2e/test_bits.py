#!/usr/bin/env python3
"""Random bits of an archive are flipped, one at a time: `verify` finds the damage, names the file and says
what to do, or the bit is one that no weight depends on. Never a crash. Seeded; SPINSHARD_BITS says how many
(default 60). Half of the bits are drawn from the parts with structure: tar headers, safetensors headers,
config.json, the manifest; those are few among all bytes."""
import json
import os
import random
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import Case, main, settings, spin, tars  # noqa: E402

COUNT = int(os.environ.get("SPINSHARD_BITS", "60"))
SEED = 20


def copy(out, to):
    """A folder of hard links; a file is replaced before it is changed."""
    os.makedirs(to)
    for name in os.listdir(out):
        os.link(os.path.join(out, name), os.path.join(to, name))


def structured(out, manifest):
    """(file, first byte, bytes) of what is not tensor data."""
    places = [("manifest.json", 0, os.path.getsize(os.path.join(out, "manifest.json")))]
    for e in manifest["entries"]:
        places.append((e["tar"], e["offset"] - 512, 512))
        n = e["bytes"]
        if e["name"].endswith(".safetensors"):
            with open(os.path.join(out, e["tar"]), "rb") as f:
                f.seek(e["offset"])
                n = 8 + struct.unpack("<Q", f.read(8))[0]
        places.append((e["tar"], e["offset"], n))
    return places


class Bits(Case):
    def setUp(self):
        super().setUp()
        model = make_model.make(self.path("m"), "--layers", 1, "--hidden", 32, "--intermediate", 32, "--heads", 2,
                                "--kv-heads", 1)
        self.out = self.path("out")
        self.good("quantize", "--model", model, "--out", self.out,
                  *settings("weights.group=channel", "weights.symmetric=false", "archive.shard_bytes=30K"))
        with open(os.path.join(self.out, "manifest.json")) as f:
            self.manifest = json.load(f)
        self.assertGreater(len(tars(self.out)), 1)

    def draw(self, rng):
        if rng.random() < 0.5:
            name, first, n = rng.choice(structured(self.out, self.manifest))
        else:
            name = rng.choice([*tars(self.out), "manifest.json"])
            first, n = 0, os.path.getsize(os.path.join(self.out, name))
        return name, 8 * (first + rng.randrange(n)) + rng.randrange(8)

    def weights(self, folder):
        """What a loader is told: where each entry lies, and its bytes."""
        with open(os.path.join(folder, "manifest.json")) as f:
            m = json.load(f)
        return [(e["tar"], e["name"], e["offset"], e["bytes"]) for e in m["entries"]], m["recipe"]

    def flip(self, place):
        name, bit = place
        to = self.path(f"{name}-{bit}")
        copy(self.out, to)
        path = os.path.join(to, name)
        with open(path, "rb") as f:
            data = bytearray(f.read())
        data[bit // 8] ^= 1 << bit % 8
        os.remove(path)
        with open(path, "wb") as f:
            f.write(data)
        r = spin("verify", to)
        where = f"\n{name}, bit {bit}\n{r}"
        self.assertNotRegex(r.err, r"Sanitizer|runtime error:", where)
        if r.rc == 0:
            self.assertEqual(name, "manifest.json", where)  # every byte of a tar is hashed
            self.assertEqual(self.weights(to), self.weights(self.out), where)
            return False
        self.assertIn(r.rc, (3, 4), where)
        self.assertEqual(len(r.errors()), 1, where)
        return True

    def test_random_bits(self):
        rng, places = random.Random(SEED), set()
        while len(places) < COUNT:
            places.add(self.draw(rng))
        with ThreadPoolExecutor(2) as pool:
            found = sum(pool.map(self.flip, sorted(places)))
        print(f"{found} of {COUNT} flipped bits found, {COUNT - found} of the manifest without meaning for weights")
        self.assertGreater(found, COUNT * 0.8)

    def test_a_recipe_that_differs(self):
        path = os.path.join(self.out, "recipe.yaml")
        with open(path) as f:
            text = f.read()
        with open(path, "w") as f:
            f.write(text.replace("kv:\n  bits: 16", "kv:\n  bits: 4"))
        self.bad(4, [r"recipe\.yaml", r"manifest\.json"], "verify", self.out)
        os.remove(path)
        self.good("verify", self.out)


if __name__ == "__main__":
    main()
