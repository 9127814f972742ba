"""The ``hsplugin`` command: each subcommand lives beside the code that it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from hsplugin import __version__
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
    """Run one subcommand and return its exit status.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        2 for an error that the user can fix, 130 after Ctrl-C, 143 after SIGTERM; else what the
        subcommand returns.
    """
    command, signals, before = "hsplugin", list[int](), dict[int, Any]()

    def interrupt(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        # Only the main thread may set any.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, interrupt)
        args = _parser().parse_args(argv)
        command = f"hsplugin {args.command}"
        if args.command == "run":  # a script minds its own signals
            restore()
        status: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
        return status
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Who reads our output, such as head, has gone; Python would try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # An import that is interrupted may raise an error of another kind.
        if not signals and isinstance(error, CommandError | ImportError):
            print(f"{command}: {error}", file=sys.stderr)
            return 2
        if not signals:
            raise
    finally:
        restore()
    print(f"{command}: interrupted; rerun to continue", file=sys.stderr)
    return 128 + (signals or [signal.SIGINT])[0]


def _parser() -> argparse.ArgumentParser:
    about = "Alignment and uniformity of representations: train, compare, measure."
    parser = argparse.ArgumentParser(prog="hsplugin", description=about)
    parser.add_argument("--version", action="version", version=f"hsplugin {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=help_line)
        importlib.import_module(module).add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
