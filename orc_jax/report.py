"""`python -m orc_jax.report` is short for `python -m orc_jax report`."""

from orc_jax.commands.report import main

if __name__ == "__main__":
    main()
