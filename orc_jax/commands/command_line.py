"""What the commands share: flags, the help page, and one line for a user's mistake."""

import codecs
import io
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from logging import getLogger
from os.path import expanduser
from typing import NoReturn

from absl import app, flags, logging
from PIL import Image

from orc_jax import checks
from orc_jax.commands import config_file
from orc_jax.errors import UserError
from orc_jax.runtime.caches import keep_programs
from orc_jax.runtime.devices import explained
from orc_jax.runtime.files import unprintable
from orc_jax.runtime.processes import leave
from orc_jax.runtime.signals import end_commands_at_once

HELP_WIDTH = 100  # columns
PLAIN = {"×": "x", "…": "...", "→": "->", "—": "-", "–": "-", "±": "+-", "█": "#", "²": "^2"}
PLAIN |= {"³": "^3", "−": "-", "≥": ">=", "≤": "<=", "α": "alpha", "β": "beta", "λ": "lambda"}


def run(
    command: Callable[..., object],
    *arguments: str,
    example: str = "",
    first: Callable[[], object] = lambda: None,
) -> None:
    """Parse the flags, run the command, and exit; with `--help`, only print how it is called.

    A mistake in the flags or a `UserError` ends with one line on standard error and exit
    status 1. Any other exception is a bug and keeps its traceback.

    Args:
      command: called with the positional arguments.
      arguments: their names, e.g. "FILE". Each must be given once; the last one may end with "…",
        as in "FILE…", and is then given once or more.
      example: arguments of a typical call, for the help page.
      first: what is to be done before JAX is used.
    """

    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        show(help_page(sys.modules[command.__module__], arguments, example))
        return

    _print_what_can_be_printed()

    def main(argv):
        # JAX warns of every backend that is missing; Orbax logs what it raises.
        logging.set_verbosity(logging.WARNING)
        # Up to twice Pillow's limit an image is decoded without a word; beyond it is refused.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        logging.get_absl_logger().setLevel("CRITICAL")
        _report_disk_errors_once()
        end_commands_at_once()
        try:
            first()
            keep_programs()
            with unprintable():
                command(*argv[1:])
                sys.stdout.flush()
        except UserError as error:
            fail(error)
        except Exception as error:
            if text := explained(error):
                fail(text)
            traceback.print_exc()
            leave(1)

    app.run(main, flags_parser=partial(_parse, arguments))


def _print_what_can_be_printed() -> None:
    """Print plain letters in place of characters that the terminal's encoding does not have.

    The names of files need not even be text.
    """
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a test keeps what is printed
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what stands for a character that cannot be encoded, and where to go on after it."""
    if isinstance(error, UnicodeEncodeError) and (found := error.object[error.start]) in PLAIN:
        return PLAIN[found], error.start + 1
    return codecs.backslashreplace_errors(error)


def show(text: str) -> None:
    """Print a text; end with one line if standard output cannot be written."""
    _print_what_can_be_printed()
    try:
        print(text, flush=True)
    except OSError as error:
        fail(f"standard output cannot be written: {error.strerror}")


def _report_disk_errors_once() -> None:
    """Keep others from reporting what is raised, too, when a file cannot be written."""
    getLogger("asyncio").setLevel("CRITICAL")
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    report = sys.unraisablehook

    def report_others(unraisable):
        # The end of TensorStore's parts of a checkpoint, and of files that are flushed at last.
        error = unraisable.exc_value
        if str(error) != "Event loop is closed" and not isinstance(error, OSError):
            report(unraisable)

    sys.unraisablehook = report_others


def help_page(module, arguments: Iterable[str], example: str) -> str:
    """Describe how a command is called: usage, summary, flags with their defaults, an example.

    Args:
      module: the command's module. The summary is its docstring, the flags are those that it
        defines.
      arguments, example: see `run`.
    """
    program = _program(module.__name__)
    own_flags = flags.FLAGS.get_flags_for_module(module.__name__)
    required = [flag for flag in own_flags if _is_required(flag)]
    call = [program, *arguments, *(f"--{flag.name}=…" for flag in required)]
    if len(required) < len(own_flags):
        call.append("[--FLAG=VALUE …]")
    lines = [f"usage: {' '.join(call)}", "", (module.__doc__ or "").strip()]
    if own_flags:
        lines += ["", "flags:"]
    width = max((len(_spelling(flag)) for flag in own_flags), default=0)
    for flag in own_flags:
        text = " ".join((flag.help or "").split())
        if flag in required:
            text += " (required)"
        elif flag.default not in (None, "", []):
            text += f" (default: {flag.default})"
        lines.append(
            textwrap.fill(
                text,
                HELP_WIDTH,
                initial_indent=f"  {_spelling(flag):{width}}  ",
                subsequent_indent=" " * (width + 4),
            )
        )
    if example:
        lines += ["", "example:", f"  {program} {example}"]
    return "\n".join(lines)


def _program(module_name):
    """Return the words that call the command of a module."""
    if module_name == "__main__":
        spec = sys.modules["__main__"].__spec__
        return f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"
    *_, name = module_name.split(".")
    return f"python -m orc_jax {name.replace('_', '-')}"


def _spelling(flag):
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"


def _is_required(flag):
    """Return whether a flag's validators refuse its default."""
    try:
        for validator in flag.validators:
            validator.verify(flags.FLAGS)
    except flags.ValidationError:
        return True
    return False


def _parse(arguments, argv):
    """Return the program's name and the positional arguments, or exit with one line."""
    try:
        checks.check_form_of_overrides(argv)
        # A shell expands "~" at the beginning of a word alone, not in --out=~/exports.
        is_path = re.compile(r"(--?\w+=)(~(?:/.*)?)").fullmatch
        found = [(argument, is_path(argument)) for argument in argv]
        positional = flags.FLAGS([m[1] + expanduser(m[2]) if m else arg for arg, m in found])
        several = bool(arguments) and arguments[-1].endswith("…")
        if (unexpected := positional[1 + len(arguments) :]) and not several:
            raise UserError(
                f"unexpected argument {unexpected[0]!r}: every setting is written --name=value"
            )
        if missing := arguments[len(positional) - 1 :]:
            raise UserError(f"{missing[0].removesuffix('…')} is required")
        return positional
    except (UserError, flags.Error) as error:
        missing_flag = re.match(r"flag --(\w+)=None: ", str(error))
        if missing_flag:
            fail(f"--{missing_flag[1]}=… is required")
        fail(config_file.fault(error, _config_file(argv)) or error)
    except Exception as error:
        if isinstance(error, OSError) and not os.path.isfile(_config_file(argv)):
            # An override asks for a config whose file is not there.
            fail(f"no such config file: {_config_file(argv)}")
        # ml_collections raises errors of many kinds, often without the name of the key.
        if found := config_file.fault(error, _config_file(argv)):
            fail(found)
        try:
            checks.check_overrides(argv)
        except UserError as named:
            fail(named)
        fail(error)


def _config_file(argv) -> str:
    """Return the path of the config file that the command line gives."""
    given = [argument for argument in argv if re.match("--?config=", argument)]
    return given[-1].partition("=")[2].partition(":")[0] if given else "--config"


def fail(error: Exception | str) -> NoReturn:
    """Print an error on standard error, a line as a rule, and end with exit status 1."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    with suppress(OSError):
        print("error:", "\n".join(filter(None, lines)), file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # what could not be written then cannot be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave(1)
