-- Modulefile for Lmod. Copy it to MODULEPATH/spinshard/VERSION.lua and set the two lines below.
local prefix = "/path/that/cmake/--install/was/given"
local needs = {}                       -- the modules it was built with, such as {"gcc/13", "openmpi/4.1"}

whatis("Spinshard: learned rotations and INT4 quantization of LLaMA-family models over MPI ranks")
help([[spinshard --help lists the commands; docs/HPC.md tells how a site runs it.]])
for _, name in ipairs(needs) do depends_on(name) end
prepend_path("PATH", pathJoin(prefix, "bin"))
-- OpenMP threads of a rank come from the batch script; BLAS inside must not make more.
setenv("OPENBLAS_NUM_THREADS", "1")
