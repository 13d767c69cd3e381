"""Our token ids against those of the `tokenizers` package: whole texts and seeded random strings, by
the tokenizers of tests/data and by variants that try each normalizer, pre-tokenizer and kind of added token.

Needs a Python that has `tokenizers`: this one, or SPINSHARD_ORACLE_PYTHON. Skips (77) without.
"""
import copy
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

SKIP = 77
SHARED = os.environ.get("SPINSHARD_SHARED", "")
DATA = os.environ.get("SPINSHARD_TEST_DATA", "")
TOOL = os.environ.get("SPINSHARD_TOOL_TOKENIZE", "")
N_RANDOM = int(os.environ.get("SPINSHARD_FUZZ", "4000"))

try:
    import tokenizers
except ImportError:
    other = os.environ.get("SPINSHARD_ORACLE_PYTHON", "")
    if other and os.path.exists(other) and not os.environ.get("SPINSHARD_ORACLE_TRIED"):
        os.environ["SPINSHARD_ORACLE_TRIED"] = "1"
        os.execv(other, [other] + sys.argv)
    print("skipped: no Python with `tokenizers` (set SPINSHARD_ORACLE_PYTHON)")
    sys.exit(SKIP)

# How published families cut texts: Qwen2, Qwen2.5, Qwen3; Mistral Nemo and its successors (Tekken).
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Llama 3, and with it SmolLM3 and DeepSeek's distillations of Llama.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# DeepSeek: V3, R1 and distillations; and the first, of LLaMA's class.
DEEPSEEK_V3 = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
               r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
               r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_LLM = (r"[\r\n]", "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0391-\u03a1\u0410-\u044f]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
                "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")

# Characters that Unicode had before version 14, of many kinds.
RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x30, 0x39), (0xA0, 0x17F), (0x300, 0x36F),
          (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669),
          (0x905, 0x939), (0x93E, 0x94D), (0xE01, 0xE3A), (0xE50, 0xE59), (0x1E00, 0x1EFF),
          (0x1F80, 0x1FB4), (0x2010, 0x2027), (0x2070, 0x2071), (0x2150, 0x2188), (0x2460, 0x24FF),
          (0x3041, 0x3096), (0x4E00, 0x4FFF), (0xAC00, 0xAD00), (0xE000, 0xE010), (0xFB00, 0xFB06),
          (0xFF10, 0xFF5A), (0x1D400, 0x1D454), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F),
          (0x20000, 0x20100), (0x10FFF0, 0x10FFFF)]
SPACES = [0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x20, 0x20, 0x20, 0x85, 0xA0, 0x1680, 0x180E, 0x2000,
          0x2003, 0x200A, 0x200B, 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF]
PIECES = ["\n\n", "\r\n", "  ", "   ", "\t\t", "'s", "'S", "'ll", "'LL", "'\u017f", "'Re", " '", "\0", "<s>",
          "</s>", "<unk>", " <unk> ", "<|begin_of_text|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>",
          "<|", "<0x0A>", "\u2581", "\u2581\u2581", "a\u2581", "\u0130", "\ufb01", "e\u0301", "\u1e9b\u0323",
          "\U0001f469\u200d\U0001f469", "1234567", "3.14", "\u00b2", "x" * 70, " " * 40, "\u4f60\u597d" * 30,
          "...", "!?", "--", "Hello", " world", "the", "Once upon a time", "[MASK]", "[MASK] ", " [X]", "word"]


def random_text(rng):
    parts = []
    for _ in range(rng.randint(0, rng.choice([4, 12, 40]))):
        kind = rng.random()
        if kind < 0.45:
            lo, hi = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(lo, hi)) for _ in range(rng.randint(1, 6))))
        elif kind < 0.65:
            parts.append("".join(chr(rng.choice(SPACES)) for _ in range(rng.choice([1, 1, 2, 3, 7]))))
        else:
            parts.append(rng.choice(PIECES))
    return "".join(parts)


def ours(path, texts):
    raw = [t.encode() for t in texts]
    got = subprocess.run([TOOL, path], input=b"".join(b"%d\n%s" % (len(r), r) for r in raw), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    if got.returncode:
        return got.stderr.decode(errors="replace").strip()
    lines = got.stdout.decode(errors="replace").split("\n")[:-1]
    return [[int(i) for i in line.split()] if not line.startswith("!") else line for line in lines]


def compare(name, path, texts):
    """The number of texts whose ids differ; the first ones are shown."""
    oracle = tokenizers.Tokenizer.from_file(path)
    oracle.no_truncation()
    oracle.no_padding()
    mine, bad, n_ids = ours(path, texts), 0, 0
    if isinstance(mine, str) or len(mine) != len(texts):
        print(f"{name}: the tool failed: {mine if isinstance(mine, str) else 'too few lines'}")
        return 1
    for text, ids in zip(texts, mine):
        want = oracle.encode(text, add_special_tokens=False).ids
        n_ids += len(want)
        if ids != want:
            bad += 1
            if bad <= 3:
                at = next((i for i, (a, b) in enumerate(zip(ids, want)) if a != b), min(len(ids), len(want)))
                print(f"{name}: {text[:120]!r}: id {at}: {ids[at:at + 8]}, not {want[at:at + 8]}")
    print(f"{name}: {len(texts)} texts, {n_ids} ids, {bad} differ")
    return bad


def splits(*patterns):
    return [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]


def families(base_bytes):
    """(name, tokenizer) as published families cut, with the vocabulary of tests/data."""
    raw = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    gpt2 = {**raw, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    for name, steps, form, ignore in (
            ("gpt2", [gpt2], None, False), ("smollm2, granite", [digits, gpt2], None, False),
            ("qwen", [*splits(QWEN), raw], {"type": "NFC"}, False), ("tekken", [*splits(TEKKEN), raw], None, True),
            ("llama3, smollm3", [*splits(LLAMA3), raw], None, True), ("deepseek-v3", [*splits(*DEEPSEEK_V3), raw], None, False),
            ("deepseek-llm", [*splits(*DEEPSEEK_LLM), digits, raw], None, False)):
        d = copy.deepcopy(base_bytes)
        d["normalizer"], d["pre_tokenizer"] = form, {"type": "Sequence", "pretokenizers": steps}
        d["model"]["ignore_merges"] = ignore
        yield name, d


def variants(base_spm, base_bytes):
    """(name, tokenizer) of forms that the files do not have."""
    def made(base, **changes):
        d = copy.deepcopy(base)
        d.update(changes)
        return d

    def chain(*steps):
        return {"type": "Sequence", "pretokenizers": list(steps)}

    def token(content, i, **flags):
        f = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        return {"id": i, "content": content, **f, **flags}

    top = max(base_spm["model"]["vocab"].values()) + 1
    added = base_spm["added_tokens"]
    mark = "\u2581"
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            meta = {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": split}
            yield f"metaspace-{scheme}-{split}", made(base_spm, normalizer=None, pre_tokenizer=meta)
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        yield form, made(base_bytes, normalizer={"type": form})
        both = {"type": "Sequence", "normalizers": [{"type": form}, base_spm["normalizer"]]}
        yield form + "-chars", made(base_spm, normalizer=both)
    for left, right in ((True, True), (True, False), (False, True)):
        strip = {"type": "Strip", "strip_left": left, "strip_right": right}
        yield f"strip-{left}-{right}", made(base_spm, normalizer={"type": "Sequence", "normalizers": [strip, base_spm["normalizer"]]})
    replace = {"type": "Replace", "pattern": {"String": "  "}, "content": "<s>"}
    yield "replace", made(base_bytes, normalizer=replace)
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    raw = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    yield "prefix-space", made(base_bytes, pre_tokenizer=level)
    yield "bytes-alone", made(base_bytes, pre_tokenizer=raw)
    yield "ignore-merges", made(base_bytes, model={**base_bytes["model"], "ignore_merges": True})
    pairs = [m.split(" ") if isinstance(m, str) else m for m in base_bytes["model"]["merges"]]
    joined = [" ".join(m) for m in pairs]
    for name, pattern, form in (("qwen", QWEN, {"type": "NFC"}), ("tekken", TEKKEN, None)):
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for merges, ignore in ((pairs, False), (joined, True)):
            yield f"{name}-{ignore}", made(base_bytes, normalizer=form, pre_tokenizer=chain(cut, raw),
                                           model={**base_bytes["model"], "merges": merges, "ignore_merges": ignore})
    yield "digits", made(base_bytes, pre_tokenizer=chain({"type": "Digits", "individual_digits": False}, level))
    yield "no-fallback", made(base_spm, model={**base_spm["model"], "byte_fallback": False})
    yield "no-fuse", made(base_spm, model={**base_spm["model"], "byte_fallback": False, "fuse_unk": False})
    yield "no-unk", made(base_spm, model={**base_spm["model"], "byte_fallback": False, "unk_token": None})
    some = {k: v for k, v in base_spm["model"]["vocab"].items() if k not in ("<0xE4>", "<0xCC>")}
    yield "some-bytes", made(base_spm, model={**base_spm["model"], "vocab": some})
    holes = {k: v for k, v in base_spm["model"]["vocab"].items() if k != mark and mark not in k}
    left = [m for m in base_spm["model"]["merges"] if mark not in "".join(m)]
    yield "no-mark", made(base_spm, model={**base_spm["model"], "vocab": holes, "merges": left})
    for i, behavior in enumerate(("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext")):
        for invert in (False, True):
            for pattern in ({"String": "e"}, {"Regex": r"\s+"}, {"Regex": r"\w"}, {"Regex": r"[^\w\s]?\d*"}):
                cut = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
                yield f"split-{behavior}-{invert}-{pattern}", made(base_bytes, pre_tokenizer=chain(cut, raw))
        punct = {"type": "Punctuation", "behavior": behavior}
        yield f"punctuation-{behavior}", made(base_bytes, pre_tokenizer=chain(punct, raw))
    for kind in ("Whitespace", "WhitespaceSplit"):
        yield kind, made(base_bytes, pre_tokenizer=chain({"type": kind}, raw))
    yield "delimiter", made(base_bytes, pre_tokenizer=chain({"type": "CharDelimiterSplit", "delimiter": "t"}, raw))
    for flags in ({}, {"single_word": True}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True},
                  {"normalized": True}, {"normalized": True, "lstrip": True, "rstrip": True}, {"special": True}):
        tokens = [token("[MASK]", top, **flags), token("[X]", top + 1, **flags), token("word", top + 2, **flags),
                  token("words", top + 3, **flags), token("Once upon", top + 4, **flags)]
        label = "-".join(flags) or "plain"
        yield "added-" + label, made(base_spm, added_tokens=added + tokens)
        yield "added-stripped-" + label, made(base_spm, added_tokens=added + tokens,
                                              normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
        meta = {"type": "Metaspace", "replacement": mark, "prepend_scheme": "first", "split": False}
        yield "added-first-" + label, made(base_spm, added_tokens=added + tokens, normalizer=None, pre_tokenizer=meta)


def main():
    if not TOOL or not os.path.exists(TOOL):
        print("skipped: SPINSHARD_TOOL_TOKENIZE is not set")
        return SKIP
    rng = random.Random(20240607)
    fuzz = [random_text(rng) for _ in range(N_RANDOM)]
    texts = []
    more = sorted(glob.glob(os.path.join(SHARED, "text", "*.txt"))) if SHARED else []
    for path in [os.path.join(DATA, "stories.txt"), *more]:
        with open(path, encoding="utf-8", newline="") as f:
            texts.append(f.read())
    bad = compared = 0
    spm = os.path.join(DATA, "stories260K", "tokenizer.json")
    small = os.path.join(DATA, "goldens", "tokenizers")
    level = os.path.join(small, "bytes.json")
    paths = [spm, level, os.path.join(small, "bytes-llama3.json")]
    paths += sorted(glob.glob(os.path.join(SHARED, "tokenizers", "*", "tokenizer.json"))) if SHARED else []
    for path in paths:
        bad += compare(os.path.relpath(path, DATA), path, texts + fuzz)
        compared += 1
    with open(spm, encoding="utf-8") as f, open(level, encoding="utf-8") as g:
        bases = json.load(f), json.load(g)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        for name, d, those in [*((n, d, fuzz) for n, d in families(bases[1])), *((n, d, fuzz[:400]) for n, d in variants(*bases))]:
            with open(path, "w", encoding="utf-8") as f:
                json.dump(d, f, ensure_ascii=False)
            bad += compare(name, path, those)
            compared += 1
    print(f"{compared} tokenizers, {bad} texts differ")
    return 1 if bad or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
