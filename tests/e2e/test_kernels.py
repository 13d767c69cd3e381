#!/usr/bin/env python3
"""The right kernels without asking: the program executes itself again where OpenBLAS does not know the CPU, with and
without ranks; not where the user has chosen, or asks for none of it; and it says which way it went.

An OpenBLAS that does not know the CPU is made by a library in front of it that says so.
"""
import os
import re
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, command, environment, main, program, skip, spin  # noqa: E402

OLD = """
#include <stdlib.h>
char *openblas_get_corename(void) {
    char *asked = getenv("OPENBLAS_CORETYPE");
    return asked && *asked ? asked : "Prescott";
}
"""
NONE = {"OPENBLAS_CORETYPE": "", "SPINSHARD_KEEP_KERNELS": "", "SPINSHARD_CHOSE_KERNELS": ""}
SAYS = "took its Prescott kernels: started again"


def cpu_words():
    with open("/proc/cpuinfo") as f:
        return set(f.read().split())


def has_avx2():
    return {"avx2", "fma"} <= cpu_words()


class Alike(Case):
    def test_mixed_ranks(self):
        """A rank with other kernels would mix its bytes with those of the others: it is named, and the way out."""
        wrap = self.path("wrap.sh")
        with open(wrap, "w") as f:
            f.write('#!/bin/sh\nif [ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" = 1 ]; then export OPENBLAS_CORETYPE=Nehalem\n'
                    f'else export OPENBLAS_CORETYPE=Haswell; fi\nexec "{program()}" "$@"\n')
        os.chmod(wrap, 0o755)
        kernels = [subprocess.run([program(), "--version"], env={**os.environ, "OPENBLAS_CORETYPE": k}, capture_output=True,
                                  text=True).stdout for k in ("Nehalem", "Haswell")]
        products = [re.search(r"products +(.*)", v).group(1) for v in kernels]
        if products[0] == products[1]:
            self.skipTest("this BLAS has one set of kernels")
        words = [wrap if w == program() else w for w in command(["quantize", "--model", STORIES, "--out", self.path("o"),
                                                                 "--set", "weights.group=channel"], 2)]
        r = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 7, r.stderr)
        for word in (socket.gethostname(), products[0], products[1], "--constraint", "[rank 1]"):
            self.assertIn(word, r.stderr)
        self.assertFalse(os.path.exists(self.path("o")))


class Bf16(Case):
    """What multiplies bf16 follows from what the kernel of the system says of the CPU."""

    def units(self):
        words = cpu_words()
        if "amx_bf16" in words:
            return "AMX"
        return "AVX-512" if "avx512_bf16" in words and words & {"AuthenticAMD", "HygonGenuine"} else None

    def version(self, isa):
        r = spin("--version", env={"ONEDNN_MAX_CPU_ISA": isa})
        self.assertEqual(r.rc, 0, r)
        return r.out

    def test_by_cpu(self):
        out = self.version("")
        if "built without oneDNN" in out:
            self.skipTest("no oneDNN")
        if not self.units():
            self.assertIn("bf16 in fp32, the faster of the two here", out)
        else:
            self.assertRegex(out, rf"products .*; oneDNN [\d.]+ {self.units()} bf16")
        self.assertNotIn("oneDNN does not use it", out)

    def test_kept_from_it(self):
        """Whoever takes the instructions away is told what that costs; on a CPU without them nothing is lost."""
        out = self.version("AVX2")
        self.assertNotIn("AMX bf16", out)
        self.assertNotIn("AVX-512 bf16", out)
        share = {"AMX": "a quarter of the speed", "AVX-512": "half of the speed", None: None}[self.units()]
        if share:
            self.assertIn(share, out)
            self.assertNotIn("the faster of the two", out)
        else:
            self.assertNotIn("of the speed", out)


class Kernels(Case):
    def setUp(self):
        super().setUp()
        source, self.old = self.path("old.c"), self.path("old.so")
        with open(source, "w") as f:
            f.write(OLD)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", self.old, source], check=True)

    def version(self, *words, **env):
        r = spin("--version", *words, env={**NONE, "LD_PRELOAD": self.old, **env})
        self.assertEqual(r.rc, 0, r)
        return {line[:10].strip(): line[11:] for line in r.out.splitlines()}

    def test_mends(self):
        got = self.version()
        self.assertIn(SAYS, got["kernels"])
        self.assertNotIn("warning", got)
        self.assertRegex(got["products"], "(SkylakeX|Haswell) fp32")

    def test_the_user_decides(self):
        for words, env in (((), {"OPENBLAS_CORETYPE": "Nehalem"}), ((), {"SPINSHARD_KEEP_KERNELS": "1"}), (("--keep-kernels",), {})):
            with self.subTest(env or words):
                got = self.version(*words, **env)
                self.assertNotIn("kernels", got)
                self.assertIn("Nehalem" if "OPENBLAS_CORETYPE" in env else "Prescott", got["products"])
                self.assertIn("half the speed", got["warning"])

    def test_ranks(self):
        for ranks in (0, 1, 2, 3):
            r = self.good("eval", "--model", STORIES, "--text", TEXT, "--window", 128, "--limit", 1, ranks=ranks,
                          env={**NONE, "LD_PRELOAD": self.old})
            self.assertEqual(r.err.count(SAYS), 1, r)

    def test_this_machine(self):
        """Whatever OpenBLAS is here: nothing chosen, nothing to warn of."""
        r = spin("--version", env=NONE)
        self.assertNotIn("warning", r.out)


if __name__ == "__main__":
    if not has_avx2() or not shutil.which("cc"):
        skip("needs a CPU with AVX2, and a C compiler")
    main()
