"""The exception for mistakes of the user, and small checks that raise it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input, which commands show as one line without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return an error for an unknown name that suggests the most similar known name.

    Args:
      kind: what the name stands for, in words ("network", "key of config").
      name: the unknown name.
      known: the known names.

    Returns:
      The error, for the caller to raise.
    """
    known, name = list(known), str(name)

    def likeness(candidate):
        # Of equally similar names, take the one with the longest common part: resnet21 → resnet20.
        matcher = difflib.SequenceMatcher(None, name.lower(), candidate.lower())
        same_case = sum(a == b for a, b in zip(name, candidate, strict=False))
        return matcher.ratio(), matcher.find_longest_match().size, same_case

    nearest = max(known, key=likeness)
    hint = f"did you mean {nearest!r}? " if likeness(nearest)[0] >= 0.6 else ""
    return UserError(f"unknown {kind} {name!r}: {hint}allowed: {', '.join(known)}")


def counted(number: int, noun: str) -> str:
    """Write a number and what it counts: "1 image", "2,000 images".

    Args:
      number: the number.
      noun: one of what it counts; the plural ends with s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_of(value, allowed: Iterable[str], where: str) -> None:
    """Check that a setting has one of the allowed values.

    Args:
      value: of the setting.
      allowed: the values.
      where: name of the setting, for the error.

    Raises:
      UserError: it has another value.
    """
    if value not in allowed:
        raise unknown(f"value of {where}", value, allowed)


def at_least(value, least, where: str) -> None:
    """Check that a setting is not too small.

    Args:
      value: of the setting.
      least: the smallest value allowed.
      where: name of the setting, for the error.

    Raises:
      UserError: the value is less than that, or not a number.
    """
    if not value >= least:
        raise UserError(f"{where} is {value}, allowed: {least} or more")
