"""The ``hsplugin`` command: each subcommand lives beside the code that it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from hsplugin.errors import CommandError

# Subcommand -> (module, one line of help). A module offers add_arguments(parser) and
# run(args) -> exit status, and imports nothing heavy before run() is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("hsplugin_solo.run", "run a solo-learn script with the methods of hsplugin registered"),
    "compare": (
        "hsplugin.compare.command",
        "train methods under one budget and compare their geometry and accuracy",
    ),
    "sweep": (
        "hsplugin.compare.sweep",
        "train many encoders and tell which metric of their features foretells their accuracy",
    ),
    "bench": ("hsplugin.bench", "time the engines beside the peers installed on this machine"),
    "measure": ("hsplugin.measure", "the geometry of embeddings that exist already"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status (2 for an error that the user can mend)."""
    parser = argparse.ArgumentParser(prog="hsplugin", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=help_line)
        importlib.import_module(module).add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        status: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
    except CommandError as error:
        print(f"hsplugin {args.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"hsplugin {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hsplugin {args.command}: interrupted; rerun to go on", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
