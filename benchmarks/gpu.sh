#!/bin/bash
# Measure orc_jax on this machine's GPU: bash benchmarks/gpu.sh FOLDER [PART...]
#
# Each part writes its output to FOLDER/PART.log and a line to FOLDER/summary.txt, so that nothing
# is lost if the time runs out. Parts, in this order: machine, golden, quickstart, step, versus.
# SCALE="--flag=value …" goes to the parts step and versus, to try them with small numbers.

cd "$(dirname "$0")/.." || exit
folder=${1:?usage: bash benchmarks/gpu.sh FOLDER [PART...]}
shift
parts=${*:-machine golden quickstart step versus}
mkdir -p "$folder"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/cache}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
  python3 -c "
import jax, jaxlib, flax, optax, orbax.checkpoint as ocp, torch, platform
print('Python', platform.python_version(), 'JAX', jax.__version__, 'Flax', flax.__version__,
      'Optax', optax.__version__, 'Orbax', ocp.__version__, 'PyTorch', torch.__version__)
print(jax.devices(), jax.devices()[0].device_kind)
assert jax.default_backend() == 'gpu'"
}

golden() { # in full float32: TF32 has a rounding of 1e-3
  JAX_DEFAULT_MATMUL_PRECISION=highest JAX_DISABLE_MOST_OPTIMIZATIONS=0 python3 -m pytest -q -n 12 -k golden tests/test_losses.py \
    tests/test_methods.py tests/test_orc.py tests/test_models.py tests/test_norm.py
}

quickstart() {
  rm -rf "$folder/runs"
  python3 -m orc_jax.main --config=configs/digits.py --workdir="$folder/runs/digits"
}

step() {
  python3 -m benchmarks.gpu_step --method=orc --trace="$folder/trace" $STEP $SCALE
}

versus() {
  python3 -m benchmarks.versus_torch $VERSUS $SCALE
}

for part in $parts; do
  SECONDS=0
  "$part" >"$folder/$part.log" 2>&1
  status=$?
  echo "$part: exit status $status, $SECONDS s" | tee -a "$folder/summary.txt"
  tail -n "${TAIL:-60}" "$folder/$part.log"
done
