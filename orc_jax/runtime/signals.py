"""SIGTERM and Ctrl-C, which ask a run to end with a checkpoint."""

import _thread
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import jax

from orc_jax.runtime import processes

SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class Stopped(Exception):
    """Raised in the middle of an evaluation when a signal asks the run to end."""


class Watch:
    """A thread that acts on signals at once.

    Python runs a signal's handler in the main thread, and not before a call into compiled code
    returns. While XLA compiles, that takes seconds. Some packages even swallow the
    KeyboardInterrupt that the usual handler raises.
    """

    def __init__(self, numbers: Iterable[int], act: Callable[[int], None]):
        """Prepare the watch.

        Args:
          numbers: the signals.
          act: called in the thread with the number of each signal.
        """
        self._numbers, self._act = tuple(numbers), act
        self._passed_on = False
        self._before: dict[int, Any] = {}  # handlers

    def start(self) -> None:
        """Start to watch; only the main thread may do so."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._descriptor_before = signal.set_wakeup_fd(
            self._sender.fileno(), warn_on_full_buffer=False
        )
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._in_main_thread)
        threading.Thread(target=self._watch, args=(self._receiver,), daemon=True).start()

    def stop(self) -> None:
        """Give the signals back to what handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        signal.set_wakeup_fd(self._descriptor_before)
        self._sender.close()  # ends the thread

    def pass_on(self, number: int) -> None:
        """Let what handled a signal before handle it, in the main thread.

        Args:
          number: of the signal.
        """
        self._passed_on = True
        _thread.interrupt_main(signal.Signals(number))

    def _watch(self, receiver: socket.socket) -> None:
        with receiver:
            while data := receiver.recv(1):
                if data[0] in self._numbers and not self._passed_on:
                    self._act(data[0])

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if self._passed_on:
            self.stop()
            signal.raise_signal(number)


def end_commands_at_once() -> None:
    """Let Ctrl-C end this process at once, whatever it is doing. For commands."""
    # A process in the background of a script, or of nohup, ignores it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        Watch([signal.SIGINT], lambda number: _end(number, "interrupted")).start()
    Interruption.is_command = True


def _end(number: int, text: str) -> None:
    """End this process with a line, and the exit status of a process that the signal ended."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), SHOW_CURSOR.encode())
        os.write(sys.stderr.fileno(), f"{text}\n".encode())
    # Reading workers would complain that this process is gone, above all one that it just starts.
    if "grain" in sys.modules:
        time.sleep(0.3)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


class Interruption:
    """The first SIGTERM or Ctrl-C; a second one ends a command at once.

    A context manager, within which the signals are caught. Outside of commands a second signal has
    its usual effect, which is a KeyboardInterrupt for Ctrl-C.

    Attributes:
      requested: name of the signal that asked the run to end; empty if none did.
    """

    is_command = False

    def __init__(self, hang_up: bool = False, again: Callable[[], None] = lambda: None) -> None:
        """Prepare to catch the signals.

        Args:
          hang_up: whether a closed terminal asks the run to end, too, unless SIGHUP is ignored
            (nohup).
          again: called in a thread at the second signal, before it has its effect.
        """
        self._again = again
        ignored = getattr(signal, "SIGHUP", None) is None or (
            signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        )
        self._more = [signal.SIGHUP] if hang_up and not ignored else []
        self.requested = ""
        self._first = True
        self._watch: Watch | None = None

    def stops(self) -> bool:
        """Return whether the run is to end here; all processes call this equally often."""
        if processes.are_stopped():
            self.requested = self.requested or "SIGTERM"
        return bool(self.requested)

    def check(self) -> None:
        """Do the same, and raise if the run is to end.

        Raises:
          Stopped: it is.
        """
        if self.stops():
            raise Stopped

    def __enter__(self):
        # Several processes must end at the same step: JAX's own handler of SIGTERM agrees on it.
        several = jax.process_count() > 1
        # Only the main thread may set handlers; in others the signals keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if several else [signal.SIGTERM, signal.SIGINT]
            self._watch = Watch([*numbers, *self._more], self._note)
            self._watch.start()
        return self

    def _note(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._first:
            self._again()
            if self.is_command:
                _end(number, f"{name} again: stopped at once, without another checkpoint")
            assert self._watch is not None
            self._watch.pass_on(number)
            return
        self._first = False
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.requested = name
        message = "stopping after this step, with a checkpoint; a second signal stops without one"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{name}: {message}", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        if self._watch is not None:
            self._watch.stop()
