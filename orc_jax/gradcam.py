"""`python -m orc_jax.gradcam` is short for `python -m orc_jax gradcam`."""

from orc_jax.commands.gradcam import main

if __name__ == "__main__":
    main()
