"""`python -m orc_jax.gradcam` is short for `python -m orc_jax gradcam`."""

from orc_jax.commands.gradcam import main
from orc_jax.insight.gradcam import heat_maps

__all__ = ["heat_maps"]

if __name__ == "__main__":
    main()
