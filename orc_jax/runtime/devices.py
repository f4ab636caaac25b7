"""What to do about errors of devices."""

import os
import traceback
from pathlib import Path

import jax

REMEDIES = (
    "To use less memory: --config.remat=True computes activations twice, --config.micro_batches=2 "
    "(4, 8, …) takes a device's images in parts, --config.eval_batch_size=64 is for evaluation, "
    "and --config.batch_size counts most. nvidia-smi shows who else uses the GPU."
)


def explained(error: BaseException) -> str:
    """Return what an error of a device means and what helps; "" if it is something else.

    Args:
      error: an exception of JAX.
    """
    text = " ".join(str(error).split())
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"the memory of a device is full ({text[:200]}).\n{REMEDIES}"
    # Without a driver, JAX only fails an assertion where it chooses a device.
    frames = traceback.extract_tb(error.__traceback__)
    chooses = isinstance(error, AssertionError) and Path(frames[-1].filename).stem == "xla_bridge"
    if chooses or text.startswith("Unable to initialize backend"):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX finds no device for JAX_PLATFORMS={platforms}. {text[:200]}\n"
            "nvidia-smi shows whether there is a GPU; pip install 'jax[cuda12]' installs what JAX "
            "needs for it. JAX_PLATFORMS=cpu uses the processor."
        )
    return ""
