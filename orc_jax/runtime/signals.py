"""SIGTERM and Ctrl-C: how a run is asked to end."""

import contextlib
import signal
import sys
import threading

import jax

from orc_jax.runtime import processes


class Interruption:
    """Notes the first SIGTERM or Ctrl-C; a second one acts as it always did."""

    def __init__(self):
        self.requested = ""
        self._before = {}

    def stops_before(self, step: int) -> bool:
        """Whether this step is not to be done any more, in no process."""
        if processes.stops_before(step):
            self.requested = "SIGTERM"
        return bool(self.requested)

    def __enter__(self):
        # Several processes must end at the same step: there JAX has its own handler of SIGTERM.
        if jax.process_count() > 1:
            return self
        # Only the main thread may set handlers; elsewhere the signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.requested = signal.Signals(number).name
        self.__exit__()
        message = "stopping after this step, with a checkpoint; once more: at once, without one"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{self.requested}: {message}", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
