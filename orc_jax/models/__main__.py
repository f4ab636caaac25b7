"""`python -m orc_jax.models` is `python -m orc_jax models`."""

from orc_jax.commands.models import main

if __name__ == "__main__":
    main()
