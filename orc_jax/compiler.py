"""What XLA's compiler is told beyond its defaults, chosen by measurement."""

import os
from functools import cache

import jax

# Platform → options of a program.
OPTIONS: dict[str, dict[str, bool | int | str]] = {
    # By default XLA hands the gradient of a convolution's kernel to YNN, which takes two to three
    # times as long as XLA's own convolution.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


def jit(function, **kwargs):
    """Call `jax.jit` with the options for this process's platform.

    Programs that train or answer are compiled with it. The result must not be called inside
    another `jax.jit`, which JAX refuses for functions with options of their own.

    Args:
      function: see `jax.jit`.
      **kwargs: further arguments of `jax.jit`.
    """
    chosen = options(jax.default_backend()) or None
    return jax.jit(function, compiler_options=chosen, **kwargs)


def options(platform: str) -> dict[str, bool | int | str]:
    """Return the options for a platform that this jaxlib knows and the user leaves to us.

    Args:
      platform: of JAX, "cpu" or "gpu". Other platforms have no options.
    """
    chosen = os.environ.get("XLA_FLAGS", "")
    return {
        name: value
        for name, value in OPTIONS.get(platform, {}).items()
        if f"--{name}" not in chosen and _is_known(name, value)
    }


@cache
def _is_known(name: str, value) -> bool:
    """Return whether XLA takes an option; one that it does not know is an error."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
