"""`python -m orc_jax.evaluate` is short for `python -m orc_jax evaluate`."""

import sys
from typing import Any

import orc_jax
from orc_jax.commands.evaluate import main

if __name__ == "__main__":
    main()
else:
    # An import of this file binds `orc_jax.evaluate` to the entry in `sys.modules`, which may be
    # any object: make it the function of that name, so that the import does not hide it.
    modules: dict[str, Any] = sys.modules
    modules[__name__] = orc_jax.evaluate
