"""``hsplugin run SCRIPT ...``: a solo-learn script with our methods registered.

For scripts without Hydra, such as ``main_knn.py`` and ``main_umap.py``, where no Hydra plugin can
register our methods.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from hsplugin.errors import CommandError
from hsplugin_solo.registry import register


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the script and its own arguments, which are all that follow."""
    parser.add_argument("script", type=Path, help="a script of a solo-learn checkout")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the script"
    )


def run(args: argparse.Namespace) -> int:
    """Register our methods, then run the script as ``python SCRIPT ...`` would.

    Raises:
        CommandError: If there is no such script or solo-learn cannot be imported.
        SystemExit: If the script exits.
    """
    script: Path = args.script
    if not script.is_file():
        raise CommandError(f"no script {str(script)!r}; name one of a solo-learn checkout")
    sys.argv = [str(script), *args.arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        register()
    except ImportError as error:
        raise CommandError(str(error)) from error
    runpy.run_path(str(script), run_name="__main__")
    return 0
