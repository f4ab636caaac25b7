"""The interface between the loading of data and the program that loads it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple


def _no_progress(description: str, total: int) -> AbstractContextManager:
    return nullcontext(lambda: None)


class Host(NamedTuple):
    """The program that loads data; by default one process, without a cache and without output.

    Attributes:
      folder: folder in which decoded images are kept; None to keep none.
      reports: folder in which lists are written that are too long to be shown; None for none.
      progress: function (description, total) → context manager, which yields a function that
        advances the progress by one.
      say: function that shows a line of text.
      broadcast: function that returns the main process's answer to a yes/no question, in all
        processes.
    """

    folder: Path | None = None
    reports: Path | None = None
    progress: Callable[[str, int], AbstractContextManager] = _no_progress
    say: Callable[[str], None] = lambda text: None
    broadcast: Callable[[bool], bool] = lambda answer: answer


ALONE = Host()
