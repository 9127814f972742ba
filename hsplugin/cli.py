"""The ``hsplugin`` command: each subcommand lives beside the code that it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from hsplugin.errors import CommandError

# Subcommand -> (module, one line of help). A module offers add_arguments(parser) and
# run(args) -> exit status. Torch is imported already; slower packages wait for run().
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("hsplugin_solo.run", "run a solo-learn script with the methods of hsplugin registered"),
    "compare": (
        "hsplugin.compare.command",
        "train methods under one budget and compare their geometry and accuracy",
    ),
    "sweep": (
        "hsplugin.sweep.command",
        "train many encoders and ask which metric of their features predicts their accuracy",
    ),
    "bench": ("hsplugin.bench.command", "time our engines and the installed alternatives"),
    "measure": ("hsplugin.measure.command", "measure the geometry of embeddings in files"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status (2 for an error that the user can fix)."""
    about = "Alignment and uniformity of representations: train, compare, measure."
    parser = argparse.ArgumentParser(prog="hsplugin", description=about)
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
    except BrokenPipeError:
        # Who reads our output, such as head, has gone; Python would try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"hsplugin {args.command}: interrupted; rerun to continue", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
