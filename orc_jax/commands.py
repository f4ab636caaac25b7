"""What the commands share: flags in, one clear line out for a user's mistake."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from orc_jax.errors import UserError


def run(command: Callable[[], object]) -> None:
    """Parses the flags, runs the command, and exits.

    A mistake in the flags or a `UserError` ends with one line on standard error and exit
    status 1; anything else is a fault of ours and keeps its traceback.
    """

    def main(_):
        # JAX and Orbax report every backend they miss and every file they write.
        logging.set_verbosity(logging.ERROR)
        try:
            command()
        except UserError as error:
            _fail(error)

    app.run(main, flags_parser=_parse)


def _parse(argv):
    try:
        rest = flags.FLAGS(argv)
    except UserError as error:
        _fail(error)
    except (flags.Error, AttributeError, KeyError, IndexError, OSError) as error:
        # ml_collections reports an unknown key, a bad index or a missing config file so.
        _fail(" ".join(str(error).strip("\"'").replace("\\'", "'").split()))
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}: every setting is written --name=value")
    return rest


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
