"""`python -m orc_jax.predict` is short for `python -m orc_jax predict`."""

from orc_jax.commands.predict import main

if __name__ == "__main__":
    main()
