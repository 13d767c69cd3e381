#!/bin/bash
# A Slurm of virtual nodes on this one machine (packages slurm-wlm and munge), without systemd and cgroups.
# A job in partition `urgent` preempts (SIGTERM after GRACE seconds' notice, default 0, then requeue) jobs in the default `main`.
# usage: [GRACE=20] slurm_up.sh DIR [NNODES] [CPUS_PER_NODE] ; then: export SLURM_CONF=DIR/slurm.conf
set -eu
D=${1:?usage: $0 DIR}; N=${2:-4}; C=${3:-2}; BASE=${SLURM_PORT_BASE:-17000}
mkdir -p "$D"/{state,log,run,spool,munge}; D=$(cd "$D" && pwd)
H=$(hostname -s)
for h in $(seq -f node%g 1 "$N"); do getent hosts "$h" >/dev/null || echo "127.0.0.1 $h" >> /etc/hosts; done
getent hosts "$H" >/dev/null || echo "127.0.0.1 $H" >> /etc/hosts
# --- munge, private key and socket (no touching of /etc/munge)
chmod 755 "$D"; chmod 711 "$D/munge"
if ! [ -S "$D/munge/munge.sock" ] || ! munge -S "$D/munge/munge.sock" -n >/dev/null 2>&1; then
  [ -f "$D/munge/munge.key" ] || { dd if=/dev/urandom of="$D/munge/munge.key" bs=1 count=128 status=none; chmod 400 "$D/munge/munge.key"; }
  munged --force --key-file="$D/munge/munge.key" --socket="$D/munge/munge.sock" --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" --seed-file="$D/munge/seed" --num-threads=2
fi
MEM=$(awk '/MemTotal/{print int($2/1024*0.9)}' /proc/meminfo)
[ -f "$D/slurm.conf" ] || cat > "$D/slurm.conf" <<CONF
ClusterName=virt
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$BASE
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.sock,cred_expire=10
CredType=cred/munge
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_setup_env_fail
PriorityType=priority/basic
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
TmpFS=$D/tmp/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MaxArraySize=1001
KillWait=5
MinJobAge=3600
WaitTime=0
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=20
DefMemPerCPU=512
LaunchParameters=enable_nss_slurm
$(for i in $(seq 1 "$N"); do echo "NodeName=node$i NodeHostname=$H NodeAddr=127.0.0.1 Port=$((BASE+10+i)) CPUs=$C RealMemory=$MEM State=UNKNOWN"; done)
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node[1-$N] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 PreemptMode=REQUEUE GraceTime=${GRACE:-0}
PartitionName=urgent Nodes=node[1-$N] MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF="$D/slurm.conf"
if ! [ -f "$D/run/slurmctld.pid" ] || ! kill -0 "$(cat "$D/run/slurmctld.pid")" 2>/dev/null; then slurmctld -i; fi
for i in $(seq 1 "$N"); do
  p="$D/run/slurmd.node$i.pid"; [ -f "$p" ] && kill -0 "$(cat "$p")" 2>/dev/null && continue
  mkdir -p "$D/spool/node$i" "$D/tmp/node$i"; chmod 1777 "$D/tmp/node$i"
  # own UTS name (Open MPI names its shared-memory files by host name) and own /dev/shm: each slurmd looks like a separate host
  if [ "${VIRT_NS:-1}" = 1 ] && unshare --uts --mount true 2>/dev/null; then
    unshare --uts --mount --propagation slave sh -c "hostname node$i && mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec slurmd -N node$i"
  else slurmd -N "node$i"; fi
done
for _ in $(seq 1 60); do
  [ "$(sinfo -h -t idle,mix,alloc -o %D 2>/dev/null | awk '{s+=$1}END{print s+0}')" -ge "$N" ] && { echo "slurm up: export SLURM_CONF=$SLURM_CONF"; sinfo -N -l; exit 0; }
  sleep 0.5
done
echo "nodes did not come up" >&2; sinfo -N -l || true; tail -n 20 "$D"/log/*.log >&2; exit 1
