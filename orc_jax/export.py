"""`python -m orc_jax.export` is short for `python -m orc_jax export`."""

from orc_jax.commands.export import main

if __name__ == "__main__":
    main()
