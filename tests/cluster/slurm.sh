#!/usr/bin/env bash
# A SLURM of one machine without systemd, for tests: starts munge, a controller and two nodes.
# Usage: slurm.sh FOLDER; then export SLURM_CONF=FOLDER/slurm.conf
set -euo pipefail
folder=$(realpath -m "$1")
mkdir -p "$folder"/{state,spool-a,spool-b,log}
host=$(hostname -s)
cores=$(nproc)
cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
SlurmctldPort=16817
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdSpoolDir=$folder/spool-%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
StateSaveLocation=$folder/state
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
MessageTimeout=60
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=a NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$cores
NodeName=b NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$cores
PartitionName=tests Nodes=a,b Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
if ! munge -n >/dev/null 2>&1; then
  mkdir -p /run/munge && chown munge: /run/munge
  [ -s /etc/munge/munge.key ] || { dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key status=none; chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
  runuser -u munge -- munged || munged --force
fi
slurmctld -c
slurmd -N a
slurmd -N b
for _ in $(seq 60); do
  sinfo --noheader --states=idle --format=%D 2>/dev/null | grep -q 2 && exit 0
  sleep 0.5
done
sinfo; tail "$folder"/log/*; exit 1
