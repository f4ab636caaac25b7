"""`python -m orc_jax COMMAND`, also installed as `orc-jax COMMAND`."""

import os
import sys
from importlib import import_module

from orc_jax.commands import COMMANDS
from orc_jax.commands.command_line import fail, show
from orc_jax.errors import unknown


def main() -> None:
    """Run the command that the first argument names, or list the commands."""
    if len(sys.argv) < 2 or sys.argv[1] in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        listed = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
        usage = "usage: python -m orc_jax COMMAND [--FLAG=VALUE …]  (or: orc-jax COMMAND …)"
        more = "python -m orc_jax COMMAND --help lists the flags of a command."
        show("\n".join([usage, "", *listed, "", more]))
        return
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        fail(unknown("command", name, COMMANDS))
    # Unlike `python -m`, the installed script does not search the current directory for modules,
    # and a method or network of the user's own may be there.
    if (directory := os.getcwd()) not in sys.path:
        sys.path.insert(0, directory)
    import_module(f"orc_jax.commands.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
