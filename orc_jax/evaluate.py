"""`python -m orc_jax.evaluate` is `python -m orc_jax evaluate`."""

import sys

import orc_jax
from orc_jax.commands.evaluate import main

if __name__ == "__main__":
    main()
else:
    # Importing this file must not hide the function of the same name: Python binds what it finds
    # here to `orc_jax.evaluate`.
    sys.modules[__name__] = orc_jax.evaluate
