"""SIGTERM and Ctrl-C, which ask a run to end with a checkpoint."""

import contextlib
import signal
import sys
import threading
from typing import Any

import jax

from orc_jax.runtime import processes


class Interruption:
    """The first SIGTERM or Ctrl-C; a second one has its usual effect.

    A context manager, within which the signals are caught.

    Attributes:
      requested: name of the signal that asked the run to end; empty if none did.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._handlers: dict[int, Any] = {}  # those that were set before

    def stops_before(self, step: int) -> bool:
        """Return whether the run is to end before this step, in all processes."""
        if processes.stops_before(step):
            self.requested = "SIGTERM"
        return bool(self.requested)

    def __enter__(self):
        # Several processes must end at the same step: JAX's own handler of SIGTERM agrees on it.
        if jax.process_count() > 1:
            return self
        # Only the main thread may set handlers; in others the signals keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.requested = signal.Signals(number).name
        self.__exit__()
        message = "stopping after this step, with a checkpoint; a second signal stops without one"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{self.requested}: {message}", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
