#!/bin/bash
# Starts a SLURM of one node and runs the README's srun line in it, with two tasks: a job that
# `scancel --signal=TERM` stops with a checkpoint, and the same job again, which goes on to its end.
# On Debian, as root, with the package slurm-wlm; orc_jax is the one that `python` imports.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/cluster/stop_and_go_on.sh
work=$(mktemp -d)
workdir=$work/runs/orc
node=$(hostname -s)
chmod 755 "$work"

daemons=()
cleanup() {
  kill "${daemons[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# MUNGE, by which the parts of SLURM know each other.
install -d -o munge -g munge -m 700 "$work/munge"
install -d -o munge -g munge -m 755 "$work/run"
dd if=/dev/urandom of="$work/munge/key" bs=1 count=1024 status=none
chown munge "$work/munge/key"
chmod 400 "$work/munge/key"
runuser -u munge -- munged --foreground --force --key-file="$work/munge/key" \
  --log-file="$work/munge/log" --pid-file="$work/run/munged.pid" --seed-file="$work/munge/seed" \
  --socket="$work/run/socket" 2>"$work/munged.err" &
daemons+=($!)

cat >"$work/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/run/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
EOF
mkdir "$work/state" "$work/spool"
export SLURM_CONF=$work/slurm.conf
while ! [ -S "$work/run/socket" ]; do sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 &
daemons+=($!)
slurmd -D -f "$SLURM_CONF" -N "$node" >/dev/null 2>&1 &
daemons+=($!)
until sinfo --noheader --format=%t 2>/dev/null | grep -q idle; do sleep 0.2; done

run() {
  srun --nodes=1 --ntasks-per-node=2 --job-name=orc \
    python -m orc_jax.main --config=configs/digits.py:dml:resnet8,resnet8 --config.epochs=12 \
    --workdir="$workdir"
}

stop() {
  scancel --signal=TERM --name=orc
}

stop_and_go_on "$work/log"
echo "SLURM: stopped with status 75, went on and finished"
