"""The one exception that a user's mistake raises, and its wording."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that does not exist, with the nearest one that does.

    Args:
      kind: what is named, in words ("network", "config key").
      name: the name given.
      known: the names allowed.

    Returns:
      The error, for the caller to raise.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}allowed: {', '.join(known)}")
