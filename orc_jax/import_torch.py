"""`python -m orc_jax.import_torch` is short for `python -m orc_jax import-torch`."""

from orc_jax.commands.import_torch import main

if __name__ == "__main__":
    main()
