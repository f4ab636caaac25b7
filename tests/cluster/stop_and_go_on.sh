# Sourced by the scripts beside it: a run that is stopped with a checkpoint, and goes on to its end.
# They define `run`, which trains for 12 epochs in $workdir, and `stop`, which sends SIGTERM.

stop_and_go_on() {
  local log=$1 status=0 job
  run >"$log" 2>&1 &
  job=$!
  until ls "$workdir"/checkpoints/*/notes.json >/dev/null 2>&1; do
    kill -0 "$job" || { cat "$log"; exit 1; }
    sleep 0.1
  done
  stop
  wait "$job" || status=$?
  cat "$log"
  [ "$status" = 75 ]
  [ "$(grep -c 'stopped by SIGTERM at step' "$log")" = 1 ]
  ! grep -q Traceback "$log"

  run >"$log" 2>&1
  cat "$log"
  [ "$(grep -c 'resumed at step' "$log")" = 1 ]
  [ "$(grep -c 'dml after epoch 12' "$log")" = 1 ]
  [ "$(wc -l <"$workdir/metrics.jsonl")" = 12 ]
}
