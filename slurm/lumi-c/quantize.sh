#!/bin/bash
# LUMI-C: nodes of 2 x EPYC 7763, 128 cores, 8 NUMA domains, 256 GB: 8 ranks of 16 cores. Not run there by this
# project: the sizes are those of the site's guide.
#
#   sbatch --account=PROJECT --nodes=4 slurm/lumi-c/quantize.sh --model DIR --out OUT ...
#
# The site requeues after a failed node by itself; `standard` has whole nodes and two days.
#SBATCH --job-name=spinshard
#SBATCH --partition=standard
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
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
# Slurm runs a copy of this script and knows where it was: the general one stands above its folder.
about=$(scontrol show job "$SLURM_JOB_ID")
script=${about#*Command=}
script=${script%%$'\n'*}
# shellcheck source=slurm/quantize.sh
. "$(dirname "$(dirname "${script%" $*"}")")/quantize.sh"
