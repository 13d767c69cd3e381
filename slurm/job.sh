# The part of a job script that is the same on every site: how ranks are started, what a signal means, and who starts
# the job again. slurm/quantize.sh reads it; `spinshard plan --script` writes it into the script that it makes. Set before:
#   spinshard   the program          out   its output folder          quantize   array: the command, without launcher
# and `launch`, an array, where srun cannot start the ranks:
#   launch=(mpirun --map-by "ppr:$SLURM_NTASKS_PER_NODE:node:PE=$SLURM_CPUS_PER_TASK" --bind-to core)
# and `chain`, so many jobs each after the one before, where this is the job number $SPINSHARD_LINK of one.
# shellcheck shell=bash disable=SC2154,SC2317

if [ -z "${launch+set}" ]; then
    kinds=$(srun --mpi=list 2>&1)
    if grep -qw pmix <<<"$kinds"; then
        kind=pmix
    elif grep -qw pmi2 <<<"$kinds"; then
        kind=pmi2
    else
        echo 'srun has neither PMIx nor PMI2: set launch=(mpirun ...), as the script shows' >&2
        exit 2
    fi
    launch=(srun "--mpi=$kind" --kill-on-bad-exit=1 --cpu-bind=cores)
fi

# Older Slurm does not say when a job ends; 0: it does not end, or nobody knows, and a signal alone stops the run.
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    SLURM_JOB_END_TIME=0
    ends=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)
    [[ $ends != [0-9]* ]] || SLURM_JOB_END_TIME=$(date -d "$ends" +%s)
fi
export SLURM_JOB_END_TIME

# Signals reach this shell alone (--signal=B:) or the ranks too (scancel, preemption). They are passed on: quantize stops
# at a commit with 75, verify ends. USR1: the time limit is near, the job is to come back. TERM: it is not.
asked='' run=''
pass_on() {
    [ "$asked" = TERM ] || asked=$1
    [ -z "$run" ] || kill -USR1 "$run" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

with_ranks() {
    "${launch[@]}" "$@" &
    run=$!
    wait "$run"
    code=$?
    while kill -0 "$run" 2>/dev/null; do # a signal ends wait, not the run
        wait "$run"
        code=$?
    done
    run=''
}

commits() {
    local n
    n=$(grep -c '"event": *"commit"' "$out/events.jsonl" 2>/dev/null)
    echo "${n:-0}" # nothing is printed where there is no file yet: that is none
}

# What Slurm says of this job: running, preempted (it was told to leave, and Slurm starts it again), or over.
job_state() {
    local about='' try
    for try in 1 2 3; do
        about=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) && break
        sleep "$try"
    done
    if ! [[ $about =~ JobState=([A-Z_]+) ]]; then
        echo unknown
    elif [ "${BASH_REMATCH[1]}" != RUNNING ]; then
        echo over
    elif [[ $about =~ [[:space:]]StartTime=([0-9T:-]+) ]] && local began=${BASH_REMATCH[1]} &&
        [[ $about =~ PreemptTime=([0-9T:-]+) ]] && ! [[ ${BASH_REMATCH[1]} < $began ]]; then
        echo preempted
    else
        echo running
    fi
}

# After a stop at a commit. Slurm requeues what it preempts, but not a job that ends by itself before it is removed.
come_back() {
    case $(job_state) in
    running)
        if [ "$asked" = TERM ]; then
            echo 'spinshard: told to end: submit the job again to go on' >&2
        elif [ -n "${chain:-}" ] && [ "${SPINSHARD_LINK:-1}" -lt "$chain" ]; then
            echo 'spinshard: the time is over: the next job of the chain goes on' >&2
        elif [ -n "${chain:-}" ]; then
            echo 'spinshard: that was the last job of the chain: start it again to go on' >&2
        elif [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ]; then
            echo 'spinshard: started 100 times: submit the job again to go on' >&2
        else
            scontrol requeue "$SLURM_JOB_ID"
        fi ;;
    preempted)
        echo 'spinshard: preempted: Slurm starts this job again' >&2
        while [ "$(job_state)" = preempted ]; do sleep 2; done ;;
    over) echo 'spinshard: the job was cancelled, or a node failed: where Slurm does not start it again, submit it' >&2 ;;
    *) echo 'spinshard: Slurm does not say how the job is: submit it again to go on' >&2 ;;
    esac
}

# The jobs of the chain that wait for this one have nothing to do: all at once, since each lets the next one start.
end_chain() {
    local waiting id=$SLURM_JOB_ID all=()
    waiting=$(squeue -h -u "$(id -un)" -t PENDING -o '%i %E')
    while [[ $'\n'$waiting$'\n' =~ $'\n'([0-9]+)\ afterany:${id}[^0-9] ]]; do
        id=${BASH_REMATCH[1]}
        all+=("$id")
    done
    [ "${#all[@]}" -eq 0 ] || scancel "${all[@]}"
}

# Ended by a signal that was meant, or by Slurm: as good as a stop at a commit, since a kill loses no commit.
was_stopped() {
    [ "$code" -eq 75 ] || { was_lost && { [ -n "$asked" ] || [ "$(job_state)" != running ]; }; }
}

was_lost() {
    [ "$code" -eq 9 ] || [ "$code" -gt 128 ]
}

# A run that has begun has said so.
lines() {
    wc -l 2>/dev/null <"$out/events.jsonl" || echo 0
}

# The ranks could not be started: where a node failed, it may not be whole yet.
wait_for_nodes() {
    echo "spinshard: the ranks did not begin (exit code $code); trying again in 20 s, $((tries + 1)) of 3" >&2
    sleep 20
}

# A lost rank is tried again, while the run comes further each time.
for ((tries = 0; ; tries++)); do
    before=$(commits) said=$(lines)
    with_ranks "${quantize[@]}"
    if ! was_lost || was_stopped; then break; fi
    if [ "$(lines)" = "$said" ] && [ "$tries" -lt 3 ]; then
        wait_for_nodes
        continue
    fi
    if [ "$(lines)" = "$said" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then
        echo 'spinshard: the ranks cannot be started here: the job is put back into the queue' >&2
        scontrol requeue "$SLURM_JOB_ID"
        break
    fi
    if [ "$tries" -eq 3 ] || [ "$(commits)" = "$before" ]; then
        why='no commit was made since the last start'
        [ "$tries" -lt 3 ] || why='that was the fourth time'
        echo "spinshard: a rank was lost (exit code $code); it is not tried again: $why" >&2
        break
    fi
    echo "spinshard: a rank was lost (exit code $code); trying again, $((tries + 1)) of 3" >&2
done

# Stopped while it verifies, the next start finds a complete archive and does that alone.
[ "$code" -ne 0 ] || with_ranks "$spinshard" verify "$out"
if was_stopped; then
    code=75
    come_back
fi
! was_lost || code=9
case $code in
75 | 9) ;; # the next one goes on
*) [ -z "${chain:-}" ] || end_chain ;;
esac
exit "$code"
