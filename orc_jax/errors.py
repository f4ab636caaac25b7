"""The one exception that a user's mistake raises, its wording, and small checks that raise it."""

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
    known, name = list(known), str(name)

    def likeness(other):
        # Of equally near names, the one with the longest run in common: resnet21 → resnet20.
        matcher = difflib.SequenceMatcher(None, name.lower(), other.lower())
        return matcher.ratio(), matcher.find_longest_match().size

    nearest = max(known, key=likeness)
    hint = f"did you mean {nearest!r}? " if likeness(nearest)[0] >= 0.6 else ""
    return UserError(f"unknown {kind} {name!r}: {hint}allowed: {', '.join(known)}")


def one_of(value, allowed: Iterable[str], where: str) -> None:
    """Raises `UserError` unless the value, of the setting `where`, is one of these."""
    if value not in allowed:
        raise unknown(f"value of {where}", value, allowed)


def at_least(value, least, where: str) -> None:
    """Raises `UserError` if the value, of the setting `where`, is less than this."""
    if not value >= least:
        raise UserError(f"{where} is {value}, allowed: {least} or more")
