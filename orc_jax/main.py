"""`python -m orc_jax.main` is short for `python -m orc_jax train`."""

from orc_jax.commands.train import main

if __name__ == "__main__":
    main()
