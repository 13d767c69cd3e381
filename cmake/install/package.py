"""Spack recipe. In a repository of one's own: mkdir -p packages/spinshard, copy this file there, `spack repo add`, then
`spack install spinshard ^openblas threads=none`. With a clone at hand: `spack dev-build spinshard@main`.
"""
from spack.package import *


class Spinshard(CMakePackage):
    """Learns rotations and quantizes LLaMA-family models to INT4 over MPI ranks on CPU clusters."""

    license("Apache-2.0")

    version("main", branch="main")

    variant("tests", default=False, description="Build the tests (they need cmocka)")
    variant("onednn", default=True, description="bf16 products by oneDNN, for CPUs with AMX")

    depends_on("c", type="build")
    depends_on("cmake@3.18:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("mpi")
    depends_on("blas")
    depends_on("lapack")
    depends_on("scalapack")
    depends_on("onednn@2:3", when="+onednn")
    depends_on("libarchive")
    depends_on("jansson")
    depends_on("libyaml")
    depends_on("pcre2")
    depends_on("utf8proc")
    depends_on("openssl")
    depends_on("hwloc@2:")
    depends_on("cmocka", when="+tests", type="build")

    def cmake_args(self):
        spec = self.spec
        return [
            self.define_from_variant("SPINSHARD_TESTS", "tests"),
            self.define("SPINSHARD_BENCH", False),
            # The compiler wrapper of Spack adds -march of the target; the default, native, is the build host's.
            self.define("SPINSHARD_ARCH", "native" if spec.satisfies("target=native") else self.arch_flag()),
            self.define("MPI_C_COMPILER", spec["mpi"].mpicc),
            self.define("BLAS_LIBRARIES", spec["blas"].libs.joined(";")),
            self.define("LAPACK_LIBRARIES", spec["lapack"].libs.joined(";")),
            self.define("SCALAPACK_LIBRARIES", spec["scalapack"].libs.joined(";")),
        ]

    def arch_flag(self):
        """A level of x86-64 that holds on every node of the target."""
        for level in ("x86_64_v4", "x86_64_v3"):
            if self.spec.satisfies(f"target={level}:"):
                return level.replace("x86_64_", "x86-64-")
        return "x86-64"
