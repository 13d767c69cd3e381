#!/bin/bash
# Quantize under Slurm, on any cluster with srun and PMIx. `spinshard plan --script` writes the same with sizes for
# a model and a cluster filled in; this one takes them from sbatch:
#
#   sbatch --nodes=4 --ntasks-per-node=8 --cpus-per-task=16 --mem=400G --time=10:00:00 slurm/quantize.sh \
#       --model DIR --out OUT --recipe range-w4a4kv4 --calib TEXT
#
# One rank on each NUMA domain is a good layout. SPINSHARD is the program (default: found in PATH). A job that is
# preempted, or comes near its end, stops at a commit and goes on in its next slice; the archive is verified at the end.
#SBATCH --job-name=spinshard
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --hint=nomultithread
#SBATCH --output=spinshard-%j.log
set -u

spinshard=${SPINSHARD:-spinshard}
launch=(srun --mpi=pmix --kill-on-bad-exit=1 --cpu-bind=cores)
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OMP_PLACES=cores OMP_PROC_BIND=close
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
# `spinshard --version` on a compute node warns of slow kernels; SPINSHARD_BLAS=SkylakeX or such mends it.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
[ -z "${SPINSHARD_BLAS:-}" ] || export OPENBLAS_CORETYPE=$SPINSHARD_BLAS

out= words=("$@")
for ((i = 0; i < $#; i++)); do
    case ${words[i]} in
    --out) out=${words[i + 1]-} ;;
    --out=*) out=${words[i]#--out=} ;;
    esac
done
if ! srun --mpi=list 2>&1 | grep -q pmix; then
    echo 'this Slurm has no PMIx: use mpirun in place of srun' >&2
    exit 2
fi

# A signal reaches this shell alone: it is passed on, and all ranks stop at the same commit.
"${launch[@]}" "$spinshard" quantize "$@" &
run=$!
trap 'kill -USR1 "$run" 2>/dev/null' USR1 TERM
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends wait, not the run
    wait "$run"
    code=$?
done

case $code in
0) "${launch[@]}" "$spinshard" verify "$out" || code=$? ;;
75) # stopped at a commit: the next slice of this job goes on there
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
        scontrol requeue "$SLURM_JOB_ID" || true # a preempted job is requeued already
    fi ;;
esac
exit "$code"
