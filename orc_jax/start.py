"""What must happen before other packages are imported."""

import signal
import sys
from pathlib import Path


def _is_command() -> bool:
    """Return whether this is `python -m orc_jax…` or `orc-jax`."""
    if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv[:-1]:  # its module is being imported
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")[0] == "orc_jax"
    return bool(sys.argv) and Path(sys.argv[0]).stem == "orc-jax"


# While a command loads its packages, Ctrl-C ends it at once: some packages swallow Python's
# KeyboardInterrupt, and others crash.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
