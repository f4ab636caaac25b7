"""`python -m orc_jax.main --config=FILE[:PRESET]` trains: it is `python -m orc_jax train`."""

from orc_jax.commands.train import main

if __name__ == "__main__":
    main()
