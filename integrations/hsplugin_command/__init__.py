"""The console script: it minds Ctrl-C before `hsplugin`, and with it torch, is imported."""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Run the ``hsplugin`` command.

    It stands apart from the package, whose import takes seconds in which a signal would end in a
    traceback.

    Returns:
        The exit status, as `hsplugin.cli.main`.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _leave) for number in numbers}
    from hsplugin.cli import main as run

    for number, handler in before.items():
        signal.signal(number, handler)
    return run()


def _leave(number: int, frame: object) -> None:
    # Nothing is lost yet, and an exception would pass through whatever module is being imported.
    os.write(2, b"hsplugin: interrupted; rerun to continue\n")
    os._exit(128 + number)
