#!/bin/bash
# LUMI-C: nodes of 2 x EPYC 7763, 128 cores, 8 NUMA domains, 256 GB: 8 ranks of 16 cores. Not run there by this
# project: the sizes are those of the site's guide. Call it from the folder of the project:
#
#   sbatch --account=PROJECT --nodes=4 slurm/lumi-c/quantize.sh --model DIR --out OUT ...
#
# The site requeues after a failed node by itself; `standard` has whole nodes and two days.
#SBATCH --job-name=spinshard
#SBATCH --partition=standard
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --mem=224G
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --hint=nomultithread
#SBATCH --output=spinshard-%j.log
set -u
SPINSHARD_BLAS=Zen # the kernels of AVX2; zen 3 has no wider vectors
export SPINSHARD_BLAS
cd "$SLURM_SUBMIT_DIR" || exit 2
# shellcheck source=slurm/quantize.sh
. slurm/quantize.sh
