#!/bin/bash
# Stop only what slurm_up.sh started, by pid file.
D=${1:?usage: $0 DIR}; export SLURM_CONF=$D/slurm.conf
scancel --user=root -Q 2>/dev/null; sleep 1
for f in "$D"/run/slurmd.node*.pid "$D"/run/slurmctld.pid "$D"/run/munged.pid; do
  [ -f "$f" ] || continue; p=$(cat "$f"); kill "$p" 2>/dev/null
  for _ in $(seq 1 40); do kill -0 "$p" 2>/dev/null || break; sleep 0.25; done
  kill -0 "$p" 2>/dev/null && kill -9 "$p"; rm -f "$f"
done
[ "${2:-}" = purge ] && rm -rf "$D"/{state,spool,log,run,munge,tmp,slurm.conf}
echo "slurm down"
