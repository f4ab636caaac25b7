"""`python tests/tiny_command.py MODULE ARGS`: `python -m MODULE ARGS` that knows `conftest.TINY`.

With HOLD=STEP, training pauses before that step: it makes the file HELD and goes on once there
is one named GO, so that a test can do something at a known time, however slow the machine is.
"""

import os
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import TINY

from orc_jax import loop, models


def held(training_batches, at: int, here: Path, go: Path):
    """`training_batches` that wait before the batch of a step."""

    def batches(setup, step):
        for i, batch in enumerate(training_batches(setup, step)):
            if step + i == at:
                here.touch()
                while not go.exists():
                    time.sleep(0.01)
            yield batch

    return batches


if __name__ == "__main__":
    models.NETWORKS.update(TINY)
    if "HOLD" in os.environ:
        loop.training_batches = held(
            loop.training_batches,
            int(os.environ["HOLD"]),
            Path(os.environ["HELD"]),
            Path(os.environ["GO"]),
        )
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
