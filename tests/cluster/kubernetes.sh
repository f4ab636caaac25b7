#!/bin/bash
# Starts the processes of docs/kubernetes.yaml on this machine, with the environment that the job gives
# its pods and under the address that its service gives to the first; the command trains on the
# digits. This is not a cluster: it shows that the file's parts fit each other and orc_jax.
# As root, because the name of the first pod is added to a copy of /etc/hosts.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${ORC_HOSTS:-}" ]; then
  ORC_HOSTS=$(mktemp)
  export ORC_HOSTS
  { cat /etc/hosts; echo "127.0.0.1 orc-0.orc"; } >"$ORC_HOSTS"
  exec unshare --mount bash -c 'mount --bind "$ORC_HOSTS" /etc/hosts && exec bash "$0"' "$0"
fi
work=$(mktemp -d)
trap 'rm -rf "$work" "$ORC_HOSTS"' EXIT

python - "$work" <<'EOF'
import os, subprocess, sys
import yaml

_, job = yaml.safe_load_all(open("docs/kubernetes.yaml"))
container = job["spec"]["template"]["spec"]["containers"][0]
command = [sys.executable, *container["command"][1:3]]
command += ["--config=configs/digits.py:dml:resnet8,resnet8", "--config.epochs=3"]
command += ["--config.batch_size=64", f"--workdir={sys.argv[1]}/run"]
processes = []
for index in range(job["spec"]["completions"]):
    given = {entry["name"]: entry.get("value", str(index)) for entry in container["env"]}
    processes.append(subprocess.Popen(command, env=os.environ | given))
statuses = [process.wait() for process in processes]
assert not any(statuses), statuses
EOF
[ "$(wc -l <"$work/run/metrics.jsonl")" = 3 ]
echo "Kubernetes: the job's four processes found each other and finished"
