"""TensorBoard's files, written by tensorboardX."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orc_jax.runtime import files


class Board:
    """Scalars over steps, in a folder that TensorBoard shows.

    tensorboardX's own writer hands them to a thread, where the error of a full disk would be lost
    and the run would wait for the thread for ever. This one writes them at once.
    """

    def __init__(self, folder: Path, step: int):
        """Begin a file.

        Args:
          folder: with the files of the run so far.
          step: from which on TensorBoard forgets what the files so far say.

        Raises:
          UserError: it cannot be written.
        """
        self._folder, self._library = folder, _library()
        with files.unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = self._library.EventsWriter(str(folder / "events"))
        start = self._library.SessionLog(status=self._library.SessionLog.START)
        self._event(step, session_log=start)

    def add(self, scalars: dict[str, int | float], step: int) -> None:
        """Write scalars, each by its tag.

        Raises:
          UserError: they cannot be written.
        """
        for tag, value in scalars.items():
            self._event(step, summary=self._library.scalar(tag, value))
        with files.unwritable(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Close the file; whether it could be written, `add` has said."""
        with suppress(OSError):
            self._writer.close()

    def _event(self, step, **content):
        with files.unwritable(self._folder):
            event = self._library.Event(wall_time=time.time(), step=step, **content)
            self._writer.write_event(event)


def _library() -> SimpleNamespace:
    """Import the parts of tensorboardX without PyTorch.

    It would import PyTorch if that is installed, which takes two seconds, only to know its
    tensors.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar
    finally:
        if modules["torch"] is None:
            del modules["torch"]
    return SimpleNamespace(
        EventsWriter=EventsWriter, Event=Event, SessionLog=SessionLog, scalar=scalar
    )
