"""What lies beside Orbax's files in `checkpoints` of a work directory, and damaged checkpoints.

`notes.json` of a checkpoint holds its score and the checksums of its files.
"""

import json
import zlib
from pathlib import Path

from orc_jax.errors import UserError
from orc_jax.runtime import files

NOTES = "notes.json"


def best(directory: Path) -> tuple[float, int] | None:
    """Return score and step of the checkpoint with the highest score, the last one among equals.

    Args:
      directory: `checkpoints` of a work directory.

    Returns:
      (score, step), or None if no checkpoint was evaluated.
    """
    scores = {step: _score(directory / str(step)) for step in steps(directory.parent)}
    return max(((x, step) for step, x in scores.items() if x is not None), default=None)


def _score(checkpoint: Path) -> float | None:
    """Return the score of a checkpoint; None if it was not evaluated or the score is lost."""
    # Before there were notes, Orbax kept the score.
    for name, key in ((NOTES, "score"), ("metrics/metrics", "target_top1")):
        score = _json(checkpoint / name).get(key)
        if isinstance(score, float):
            return score
    return None


def write(checkpoint: Path, score: float | None) -> None:
    """Note the score of a checkpoint, and the checksums of its files.

    Args:
      checkpoint: its directory, in which Orbax has written everything.
      score: top-1 accuracy in percent; None if it was not evaluated.

    Raises:
      UserError: the notes cannot be written.
    """
    # Checksums that were noted stay: later ones would be those of later damage.
    notes = _json(checkpoint / NOTES) or {"files": _checksums(checkpoint)}
    files.write(checkpoint / NOTES, files.to_json(notes | {"score": score}))


def _json(path: Path) -> dict:
    """Return the object in a JSON file, or {} if there is none.

    Raises:
      UserError: the file is there and cannot be read.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return value if isinstance(value, dict) else {}


def _checksums(checkpoint: Path) -> dict[str, list[int]]:
    """Return file → [bytes, CRC-32] of everything that Orbax wrote for a checkpoint."""
    found = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and NOTES not in path.name:
            size = checksum = 0
            with path.open("rb") as file:
                while part := file.read(2**20):
                    size, checksum = size + len(part), zlib.crc32(part, checksum)
            found[path.relative_to(checkpoint).as_posix()] = [size, checksum]
    return found


def fault(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint; "" if nothing is.

    Args:
      checkpoint: its directory. One without notes, of an earlier version or of a run that was
        killed just then, is taken to be whole if its parts are there.

    Raises:
      UserError: the disk cannot be read, which says nothing of the checkpoint.
    """
    try:
        for part in ("state", "state/_METADATA", "_CHECKPOINT_METADATA"):
            if not (checkpoint / part).exists():
                return f"{part} is missing"
        if not (checkpoint / NOTES).exists():
            json.loads((checkpoint / "state/_METADATA").read_text())
            return ""
        if not (expected := _json(checkpoint / NOTES).get("files")):
            return f"{NOTES} is damaged"
        found = _checksums(checkpoint)
        for name, (size, checksum) in expected.items():
            if name not in found:
                return f"{name} is missing"
            if found[name][0] != size:
                return f"{name} has {found[name][0]:,} bytes in place of {size:,}"
            if found[name][1] != checksum:
                return f"{name} has changed since it was written"
    except OSError as error:
        raise UserError(f"{checkpoint} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)
    return ""


def set_damaged_aside(workdir: Path) -> list[str]:
    """Move what is no whole checkpoint from `checkpoints` to `damaged`.

    Args:
      workdir: a work directory that this process has locked.

    Returns:
      A line about each damaged checkpoint.

    Raises:
      UserError: the disk cannot be read or written.
    """
    lines = []
    entries = (workdir / "checkpoints").glob("*")
    for path in sorted(path for path in entries if path.name.isdigit()):
        if found := fault(path):
            place = workdir / "damaged" / path.name
            number = 1
            while place.exists():
                number += 1
                place = workdir / "damaged" / f"{path.name}-{number}"
            with files.unwritable(place):
                place.parent.mkdir(exist_ok=True)
                path.rename(place)
            lines.append(f"{path} is damaged ({found}): it is in {place} now")
    return lines


def steps(workdir: str | Path) -> list[int]:
    """Return the steps that have a checkpoint, in their order.

    Stray files and folders without a state are passed over.
    """
    states = (Path(workdir) / "checkpoints").glob("*/state")
    return sorted(int(path.parent.name) for path in states if path.parent.name.isdecimal())


def has_checkpoint(workdir: str | Path) -> bool:
    """Return whether a work directory has a checkpoint."""
    return bool(steps(workdir))
