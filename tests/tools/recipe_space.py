"""The recipe as a space to draw from: values of every key, and which combinations are refused, and why.

tests/e2e/test_every_value.py runs every value at least once, tests/e2e/test_random_runs.py draws at random. A model is
described by its sizes: a dict with hidden, intermediate, heads, kv_heads, head_dim.
"""
import itertools
import json

# Values of each key, the default first. None stands for a value that depends on the run: rotate.start has a file too.
FILE = "FILE"
VALUES = {
    "recipe_version": [1],
    "seed": [0, 9007199254740991],
    "rotate.r1": [True, False],
    "rotate.r2": ["layer", "none", "head"],
    "rotate.start": ["had", "identity", "orthogonal", "pca", "womi", FILE],
    "rotate.start_r2": ["same", "pca", "womi"],
    "rotate.online": [[], ["r3"], ["r4"], ["r3", "r4"]],
    "rotate.r3": ["had", "signs", "pca"],
    "rotate.r4_block": ["auto", "pow2", 1, 4],
    "scale.pairs": [[], ["norm"], ["vo"], ["qk"], ["ud"], ["norm", "vo", "qk", "ud"]],
    "scale.start": ["ones", "closed", "smooth"],
    "scale.alpha": [0.5, 0, 1],
    "weights.method": ["rtn", "gptq", "gptaq"],
    "weights.bits": [4, 2, 3, 5, 6, 7, 8, 16],
    "weights.group": ["channel", "auto", 4, 1],
    "weights.symmetric": [True, False],
    "weights.scale": ["max", "search"],
    "weights.act_order": [True, False],
    "weights.damp": [0.01, 0, 1],
    "weights.stream": ["full", "quantized"],
    "weights.target": ["layer", "full"],
    "weights.alpha": [1.0, 0, 0.5],
    "activations.bits": [16, 2, 4, 8],
    "activations.symmetric": [False, True],
    "activations.clip": [1.0, 0.01, 0.9, "search", {"attn": [0.9, 0.97], "mlp": 0.8, "o": 0.95, "down": 0.75}],
    "activations.group": ["token", "weights", 4],
    "activations.o_group": ["head", "token"],
    "activations.down_bits": ["same", 2, 8, 16],
    "activations.eight": [{}, {"mlp": "all", "down": ["all"]}, {"attn": "all", "o": "all"}],  # of all layers: no model is asked
    "activations.average": [0, 8, 7.5],
    "activations.scale": ["published", "compressed-tensors"],
    "kv.bits": [16, 2, 4, 8],
    "kv.symmetric": [False, True],
    "kv.rotate": ["r3", "runtime"],
    "kv.format": ["int", "fp8"],
    "kv.clip": [1.0, 0.01, 0.9, "search", {"k": [0.95, 1], "v": 1.05}],
    "calib.windows": [2, 1, 5],
    "calib.window": [48, 33],
    "calib.bos": ["auto", "none", "each-window"],
    "archive.dtype": ["same", "bf16", "fp16"],
    "archive.form": ["auto", "pack-quantized", "int-quantized"],
    "archive.shard_bytes": ["4G", 1024, "64K"],
    "archive.name": ["auto", "a-name"],
    "archive.base_model": ["auto", "an-org/A.model"],
    "numerics.grid": ["auto", "1x1"],
    "numerics.threads": ["auto", 1, 2],
    "numerics.slice_tokens": ["auto", 1, 16],
    "numerics.gptq_grid": ["auto", "1x1"],
    "numerics.gptq_grid_from": [4096, 1],
    "numerics.gptq_block": [128, 1, 7],
}
# Of a phase of learn.
PHASE_VALUES = {
    "objective": ["range", "ce", "kl-top"],
    "steps": [2, 1],
    "batch": [1, 2],
    "window": [32, 17],
    "rows": [64, 1, 300],
    "optimizer": ["adam", "sgd-published"],
    "lr_r1": [0.002, 0],
    "lr_r2": [0.006, 0],
    "lr_scale": [0, 0.02],
    "schedule": ["cosine", "linear", "constant"],
    "range_grad": ["through", "detached"],
    "weights": [False, True],
    "top_k": [1000, 1, 5],
    "draw": ["uniform", "importance"],
}
BELOW = 16  # bits from which nothing is quantized


def default():
    return {**{k: v[0] for k, v in VALUES.items()}, "learn": []}


def phase(**keys):
    return {**{k: v[0] for k, v in PHASE_VALUES.items()}, **keys}


def words(recipe):
    """The --set words of a recipe; a key at its default is left out where the program has the same one."""
    own = {"calib.windows", "calib.window", "weights.group"}  # defaults here that are not the program's
    return [w for k, v in recipe.items() if k in own or v != default()[k]
            for w in ("--set", f"{k}={v if isinstance(v, str) else json.dumps(v)}")]


def has_hadamard(n):
    """Of the orders that the models of these tests have."""
    return n in (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 60, 64, 96, 100, 128, 256)


def down_bits(r):
    return r["activations.bits"] if r["activations.down_bits"] == "same" else r["activations.down_bits"]


def cache_has_ranges(r):
    """Of FP8 no rotation makes the error smaller, so `range` leaves it out."""
    return r["kv.bits"] < BELOW and r["kv.format"] != "fp8"


def helped(r):
    """The pairs of scale.pairs that something quantized profits from."""
    act, kv = r["activations.bits"] < BELOW, r["kv.bits"] < BELOW
    loop = any(p["objective"] != "range" and p["lr_scale"] and p["weights"] for p in r["learn"])
    helps = {"norm": act or loop, "vo": act or kv or loop, "qk": kv, "ud": down_bits(r) < BELOW or loop}
    return [p for p in r["scale.pairs"] if helps[p]]


def learns_scales(r):
    """A phase at the end of the model moves scales."""
    return bool(r["scale.pairs"]) and any(p["objective"] != "range" and p["lr_scale"] for p in r["learn"])


def tunes_sites(r):
    """Clips by search, or R3 from keys, of something that is quantized."""
    inputs, kv = min(r["activations.bits"], down_bits(r)) < BELOW, r["kv.bits"] < BELOW
    return (inputs and r["activations.clip"] == "search") or (kv and (
        r["kv.clip"] == "search" or (r["rotate.r3"] != "had" and "r3" in r["rotate.online"])))


def needs_text(r):
    return bool(r["learn"] or r["weights.method"] != "rtn" or "pca" in (r["rotate.start"], r["rotate.start_r2"])
                or (r["scale.start"] != "ones" and helped(r)) or tunes_sites(r) or r["activations.average"])


def input_bits(r):
    """Bits of the inputs of each place."""
    bits = {p: down_bits(r) if p == "down" else r["activations.bits"] for p in ("attn", "mlp", "o", "down")}
    return {p: 8 if b < 8 and p in r["activations.eight"] else b for p, b in bits.items()}


def average_bits(r, m):
    """Over the multiplications of a layer's linears."""
    q, kv = m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]
    products = {"attn": m["hidden"] * (q + 2 * kv), "mlp": 2 * m["hidden"] * m["intermediate"], "o": q * m["hidden"],
                "down": m["intermediate"] * m["hidden"]}
    return sum(n * input_bits(r)[p] for p, n in products.items()) / sum(products.values())


def refusals(r, m):
    """[(exit code, words of the message)] that a recipe may be refused with for a model; empty: it runs."""
    out = []
    rotated = r["rotate.r1"] or r["rotate.r2"] != "none"
    phases, pairs = r["learn"], r["scale.pairs"]
    # ---- what the recipe alone tells ----
    if phases and not rotated:
        out.append((2, "nothing is rotated"))
    for p in phases:
        if p["objective"] != "range" and not p["weights"] and r["activations.bits"] >= BELOW and r["kv.bits"] >= BELOW:
            out.append((2, "nothing to learn"))
        kv = cache_has_ranges(r) if p["objective"] == "range" else r["kv.bits"] < BELOW
        weights = p["weights"] or (p["objective"] == "range" and r["activations.bits"] >= BELOW and not kv)
        if weights and r["weights.bits"] >= BELOW:
            out.append((2, "no rounding of weights"))
        act = r["activations.bits"] < BELOW or weights
        if rotated and not (r["rotate.r1"] and act) and not (r["rotate.r2"] != "none" and (act or kv)):
            out.append((2, "nothing to learn"))
    fp8 = r["kv.format"] == "fp8" and r["kv.bits"] < BELOW
    if fp8 and r["kv.rotate"] != "runtime" and (r["kv.bits"] != 8 or r["kv.clip"] != 1 or "r3" in r["rotate.online"]):
        out.append((2, "kv.format is fp8"))
    if r["kv.rotate"] == "runtime" and r["kv.bits"] < BELOW and (
            r["kv.bits"] != 4 or fp8 or r["kv.symmetric"] or r["kv.clip"] != 1 or "r3" in r["rotate.online"]):
        out.append((2, "kv.rotate is runtime"))
    if r["scale.start"] == "smooth":
        mixed = {"norm": r["rotate.r1"], "vo": r["rotate.r2"] != "none", "ud": "r4" in r["rotate.online"], "qk": True}
        if not pairs or any(mixed[p] for p in pairs):
            out.append((2, "scale.start is smooth"))
    elif (r["scale.start"] == "ones" and pairs and not learns_scales(r)) or (r["scale.start"] != "ones" and not pairs):
        out.append((2, "scales of ones|no pair is named"))
    if out:
        return out
    # ---- sizes ----
    sizes = (m["hidden"], m["intermediate"], m["heads"] * m["head_dim"])
    if isinstance(r["weights.group"], int) and any(n % r["weights.group"] for n in sizes):
        out.append((2, "does not divide"))
    if any(n % (inputs_group(r, sizes) or 1) for n in sizes):
        out.append((2, "does not divide"))
    plain = {**r, "activations.eight": {}}
    if any(input_bits(plain)[p] >= 8 for p in r["activations.eight"]) or (r["activations.average"] and r["activations.bits"] >= 8):
        out.append((2, "bits without it"))
    elif 0 < r["activations.average"] < average_bits(r, m):
        out.append((2, "on average"))
    had = r["rotate.start"] == "had"
    if had and r["rotate.r1"] and not has_hadamard(m["hidden"]):
        out.append((3, "no Hadamard matrix"))
    if had and r["rotate.r2"] != "none" and r["rotate.start_r2"] == "same" and not has_hadamard(m["head_dim"]):
        out.append((3, "no Hadamard matrix"))
    if "r3" in r["rotate.online"] and not has_hadamard(m["head_dim"]):
        out.append((3, "no Hadamard matrix"))
    if r["kv.rotate"] == "runtime" and r["kv.bits"] < BELOW and m["head_dim"] % 2:
        out.append((2, "even head sizes"))
    if "r4" in r["rotate.online"]:
        block = r4_block(r, m["intermediate"])
        if m["intermediate"] % block:
            out.append((2, "do not divide"))
        elif not has_hadamard(block):
            out.append((3, "no Hadamard matrix"))
    # ---- what goes together ----
    if r["weights.bits"] >= BELOW and (r["archive.form"] != "auto" or "r4" in r["rotate.online"]):
        out.append((2, "weights.bits is 16"))
    elif r["archive.form"] == "int-quantized" and not says_inputs(r, m):
        out.append((2, "int-quantized says"))
    for p in phases:
        e2e = p["objective"] != "range"
        if e2e and p["window"] > r["calib.window"]:
            out.append((2, "calib.window"))
    return out


def inputs_group(r, sizes):
    """activations.group as a number; None by token."""
    group = r["activations.group"] if r["activations.group"] != "weights" else r["weights.group"]
    if group == "auto":
        group = max((g for g in (32, 64, 128) if not any(n % g for n in sizes)), default=None)
    return group if isinstance(group, int) else None


def r4_block(r, intermediate):
    """rotate.r4_block as a number."""
    if r["rotate.r4_block"] == "pow2":
        return min(intermediate & -intermediate, 4096)
    return intermediate if r["rotate.r4_block"] == "auto" else r["rotate.r4_block"]


def says_inputs(r, m):
    """The form int-quantized can say how inputs are quantized."""
    block = r4_block(r, m["intermediate"])
    return (r["activations.bits"] == 8 and r["activations.symmetric"] and r["activations.o_group"] == "token"
            and inputs_group(r, (m["hidden"], m["intermediate"], m["heads"] * m["head_dim"])) is None
            and r["activations.clip"] == 1 and r["activations.down_bits"] in ("same", 8) and r["weights.symmetric"]
            and ("r4" not in r["rotate.online"] or block & block - 1 == 0))


def draw_phase(rng, recipe):
    p = {k: rng.choice(v) for k, v in PHASE_VALUES.items()}
    p["window"] = min(p["window"], recipe["calib.window"])
    return p


def draw(rng):
    """A recipe at random: most keys at their default, so that not every draw is refused for one of many."""
    r = {k: rng.choice(v) if rng.random() < 0.4 else v[0] for k, v in VALUES.items()}
    r["learn"] = [draw_phase(rng, r) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
    if r["scale.pairs"] and r["scale.start"] == "ones" and not learns_scales(r):
        r["scale.start"] = "closed"
    if not r["scale.pairs"]:
        r["scale.start"] = "ones"
    if r["activations.bits"] >= 8 or down_bits(r) >= 8:  # mostly: these two would be refused in most draws
        r["activations.eight"] = r["activations.eight"] if rng.random() < 0.1 else {}
        r["activations.average"] = r["activations.average"] if rng.random() < 0.1 else 0
    return r


def pairwise(keys, fits, rng, tries=60):
    """Recipes in which every pair of values of these keys that `fits` stands together at least once: each new recipe is
    the one of some tries that brings most new pairs."""
    keys = list(keys)
    todo = {((a, i), (b, j)) for a, b in itertools.combinations(keys, 2)
            for i in range(len(VALUES[a])) for j in range(len(VALUES[b]))}
    out, idle = [], 0
    while todo and idle < 20:
        best, gain = None, set()
        for _ in range(tries):
            pick = {k: rng.randrange(len(VALUES[k])) for k in keys}
            if rng.random() < 0.9:
                pick.update(rng.choice(sorted(todo)))
            r = {**default(), **{k: VALUES[k][i] for k, i in pick.items()}}
            if not fits(r):
                continue
            new = {((a, pick[a]), (b, pick[b])) for a, b in itertools.combinations(keys, 2)} & todo
            if len(new) > len(gain):
                best, gain = r, new
        if best is None:
            idle += 1
            continue
        idle = 0
        todo -= gain
        out.append(best)
    return out
