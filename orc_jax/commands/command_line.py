"""What the commands share: flags in, one clear line out for a user's mistake."""

import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from absl import app, flags, logging

from orc_jax import checks
from orc_jax.errors import UserError
from orc_jax.runtime.caches import keep_programs
from orc_jax.runtime.processes import leave


def run(command: Callable[..., object], *arguments: str) -> None:
    """Parses the flags, runs the command, and exits.

    A mistake in the flags or a `UserError` ends with one line on standard error and exit
    status 1; anything else is a fault of ours and keeps its traceback.

    Args:
      command: called with the arguments that are not flags.
      arguments: what those are, e.g. "FILE"; each must be given once, or the last one, "FILE…",
        once or more.
    """

    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        show_help(command, arguments)
        return

    def main(argv):
        # JAX reports every backend that is not there, Orbax what it will not do on disk.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().setLevel("ERROR")
        keep_programs()
        try:
            command(*argv[1:])
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            leave(130)
        except Exception:
            traceback.print_exc()
            leave(1)

    app.run(main, flags_parser=partial(_parse, arguments))


def show_help(command: Callable[..., object], arguments: tuple[str, ...]) -> None:
    """Print how a command is called: what its file says, and every flag with its default."""
    module = sys.modules[command.__module__]
    print((module.__doc__ or "").strip() + "\n")
    if arguments:
        print("arguments: " + " ".join(arguments))
    for flag in flags.FLAGS.get_flags_for_module(module.__name__):
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
        print(f"  --{flag.name}: {' '.join((flag.help or '').split())}{default}")


def _parse(arguments, argv):
    try:
        rest = flags.FLAGS(argv)
        several = bool(arguments) and arguments[-1].endswith("…")
        if (unexpected := rest[1 + len(arguments) :]) and not several:
            raise UserError(
                f"unexpected argument {unexpected[0]!r}: every setting is written --name=value"
            )
        if missing := arguments[len(rest) - 1 :]:
            raise UserError(f"{missing[0].removesuffix('…')} is required")
        return rest
    except (UserError, flags.Error) as error:
        missing = re.match(r"flag --(\w+)=None: ", str(error))
        fail(f"--{missing[1]}=… is required" if missing else error)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        # ml_collections raises these for overrides; say which key it is about.
        try:
            checks.check_overrides(argv)
        except UserError as better:
            error = better
        fail(error)


def fail(error) -> NoReturn:
    """Print one line on standard error and end with exit status 1."""
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    leave(1)
