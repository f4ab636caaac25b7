#!/bin/bash
# Runs the README's mpirun line with two processes: one run that a SIGTERM to a process stops with a
# checkpoint, and the same command again, which goes on to its end.
# On Debian, with the package openmpi-bin; orc_jax is the one that `python` imports.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() {
  mpirun --allow-run-as-root --oversubscribe -n 2 \
    python -m orc_jax.main --config=configs/digits.py:dml:resnet8,resnet8 --config.epochs=12 \
    --workdir="$work/run"
}

run >"$work/first" 2>&1 &
job=$!
until ls "$work"/run/checkpoints/*/notes.json >/dev/null 2>&1; do
  kill -0 "$job" || { cat "$work/first"; exit 1; }
  sleep 0.1
done
pkill -TERM --oldest --full "^[^ ]*python -m orc_jax.main .*$work/run"
status=0
wait "$job" || status=$?
cat "$work/first"
[ "$status" = 75 ]
[ "$(grep -c 'stopped by SIGTERM at step' "$work/first")" = 1 ]
! grep -q Traceback "$work/first"

run >"$work/second" 2>&1
cat "$work/second"
[ "$(grep -c 'resumed at step' "$work/second")" = 1 ]
[ "$(grep -c 'dml after epoch 12' "$work/second")" = 1 ]
[ "$(wc -l <"$work/run/metrics.jsonl")" = 12 ]
echo "mpirun: stopped with status 75, went on and finished"
