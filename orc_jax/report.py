"""`python -m orc_jax.report` is `python -m orc_jax report`."""

from orc_jax.commands.report import main

if __name__ == "__main__":
    main()
