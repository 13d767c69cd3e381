#!/bin/bash
# Quantize under Slurm, on any cluster. `spinshard plan --script` writes the same with sizes for a model and a cluster
# filled in; this one takes them from sbatch:
#
#   sbatch --nodes=4 --ntasks-per-node=8 --cpus-per-task=16 --time=10:00:00 slurm/quantize.sh \
#       --model DIR --out OUT --recipe range-w4a4kv4 --calib TEXT
#
# One rank on each NUMA domain is a good layout. SPINSHARD is the program (default: found in PATH, or installed with this script). A job that is
# preempted, or comes near its end, stops at a commit and goes on in its next slice; the archive is verified at the end.
#SBATCH --job-name=spinshard
#SBATCH --mem=0
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --hint=nomultithread
#SBATCH --output=spinshard-%j.log
set -u

# Slurm runs a copy of this script and knows where it was: job.sh stands beside it, or above the folder of a site.
about=$(scontrol show job "$SLURM_JOB_ID")
script=${about#*Command=}
script=${script%%$'\n'*}
here=$(dirname "${script%" $*"}")
[ -e "$here/job.sh" ] || here=$(dirname "$here")
spinshard=${SPINSHARD:-$(command -v spinshard || echo "$here/../../../bin/spinshard")} # the last as it is installed
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OMP_PLACES=cores OMP_PROC_BIND=close
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
# `spinshard --version` on a compute node warns of slow kernels; SPINSHARD_BLAS=SkylakeX or such mends it.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
[ -z "${SPINSHARD_BLAS:-}" ] || export OPENBLAS_CORETYPE=$SPINSHARD_BLAS

out='' words=("$@")
for ((i = 0; i < $#; i++)); do
    case ${words[i]} in
    --out) out=${words[i + 1]-} ;;
    --out=*) out=${words[i]#--out=} ;;
    esac
done
quantize=("$spinshard" quantize "$@")

# shellcheck source=slurm/job.sh
. "$here/job.sh"
