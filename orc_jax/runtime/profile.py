"""A trace of a few steps, for TensorBoard's profiler or ui.perfetto.dev."""

from pathlib import Path

import jax

FIRST, STEPS = 5, 5  # the first steps after a start are slower than those that follow


class Profiler:
    """A tracer of steps 6 to 10 of a run, or of a resumed run.

    A context manager.

    Args:
      wanted: `config.profile`; if False, nothing is traced.
      workdir: work directory of the run; the trace goes to its folder `profile`.
    """

    def __init__(self, wanted: bool, workdir: Path):
        self._left = FIRST + STEPS if wanted else -1
        self._folder = workdir / "profile"
        self._tracing = False

    def before_step(self, state) -> None:
        """Start or end the trace; call this with the state before every step."""
        if self._left == STEPS:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a step is one program, Python only waits for it
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._tracing = True
        elif self._left == 0:
            jax.block_until_ready(state)
            self.__exit__()
        self._left -= self._left >= 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
