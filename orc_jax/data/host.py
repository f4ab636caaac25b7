"""What loading data needs of the program around it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple


def _no_progress(description: str, total: int) -> AbstractContextManager:
    return nullcontext(lambda: None)


class Host(NamedTuple):
    """The program that loads data; by default it keeps and shows nothing, and is one process.

    Attributes:
      folder: where decoded images are kept; None: nowhere.
      progress: (description, total) → a context with a function that advances by one.
      say: shows a line of text.
      broadcast: a yes or no of this process → that of the main process.
    """

    folder: Path | None = None
    progress: Callable[[str, int], AbstractContextManager] = _no_progress
    say: Callable[[str], None] = lambda text: None
    broadcast: Callable[[bool], bool] = lambda answer: answer


ALONE = Host()
