"""Run `python -m orc_jax.models` as `python -m orc_jax models`."""

from orc_jax.commands.models import main

if __name__ == "__main__":
    main()
