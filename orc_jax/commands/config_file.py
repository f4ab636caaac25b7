"""Config files, and what is wrong with them in one line."""

import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from orc_jax.errors import UserError


def load() -> tuple[ConfigDict, str, str]:
    """Load the config that the flag --config names, with its overrides.

    Returns:
      The config, the path of its file, and its preset; "" without one.

    Raises:
      UserError: the file is missing or wrong.
    """
    flag = flags.FLAGS["config"]
    path, _, preset = config_flags.get_config_filename(flag).partition(":")
    try:
        config: Any = flag.value
        getattr(config, "method", None)  # raises if there is no file
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not Path(path).is_file():
            raise UserError(f"no such config file: {path}") from error
        raise UserError(fault(error, path) or f"{path}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returns {config!r}, allowed: a ConfigDict")
    return config, path, preset


def fault(error: BaseException | None, path: str) -> str:
    """Return what is wrong in a config file, with its line; "" if it is not the cause of an error.

    Args:
      error: what was raised while the config was loaded.
      path: of the file.
    """
    file = str(Path(path).absolute())
    while error is not None:
        if isinstance(error, SyntaxError):
            return f"{error.filename or path}, line {error.lineno or 1}: {error.msg}"
        if isinstance(error, AttributeError) and error.name == "get_config":
            return f"{path} has no function get_config"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if str(Path(frame.filename).absolute()) == file]
        if lines:
            return f"{path}, line {lines[-1]}: {type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__
    return ""
