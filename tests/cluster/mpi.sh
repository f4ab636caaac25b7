#!/bin/bash
# Runs the README's mpirun line with two processes: one run that a SIGTERM to a process stops with a
# checkpoint, and the same command again, which goes on to its end.
# On Debian, with the package openmpi-bin; orc_jax is the one that `python` imports.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/cluster/stop_and_go_on.sh
work=$(mktemp -d)
workdir=$work/run
trap 'rm -rf "$work"' EXIT

run() {
  mpirun --allow-run-as-root --oversubscribe -n 2 \
    python -m orc_jax.main --config=configs/digits.py:dml:resnet8,resnet8 --config.epochs=12 \
    --workdir="$workdir"
}

stop() {
  pkill -TERM --oldest --full "^[^ ]*python -m orc_jax.main .*$workdir"
}

stop_and_go_on "$work/log"
echo "mpirun: stopped with status 75, went on and finished"
