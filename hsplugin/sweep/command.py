"""The ``hsplugin sweep`` command line: many encoders, and which metric predicts their accuracy."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from hsplugin.checks import check_integer
from hsplugin.errors import CommandError
from hsplugin.flags import add_flags, complete, defaults_of
from hsplugin.lab.data import load
from hsplugin.lab.locks import locked
from hsplugin.lab.request import add_slurm_flag, machine, shared_settings
from hsplugin.lab.run import Run, refuse_mixing
from hsplugin.lab.runs import require_extra, run_all
from hsplugin.lab.settings import Machine, RunSettings
from hsplugin.sweep.grid import DEFAULT_GRID, encoders, fitting, read_grid

DEFAULTS: dict[str, Any] = {
    **defaults_of(RunSettings, Machine, without=["framework", "solo_checkout"]),
    # A sweep reads only the end of each run.
    "validations": 1,
    "grid": None,
    "slurm": [],
    "random": None,
    "out": "sweep",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; one that is not given is absent, so that a config file may give it."""
    add_flags(parser, RunSettings, Machine, defaults=DEFAULTS)
    add_slurm_flag(parser)
    parser.add_argument("--out", help="folder for the results; default: sweep")
    what = parser.add_argument_group("which encoders")
    what.add_argument(
        "--grid",
        metavar="FILE",
        help="YAML: a mapping, or a list of them, from names to values, such as "
        "{method: [simclr], temperature: [0.1, 0.5], dim: [16, 64]}; default: about 70 encoders "
        "over weights, alpha, t, temperature, dimension, batch size, learning rate and epochs",
    )
    what.add_argument("--random", type=int, metavar="N", help="only N of them, drawn at random")


def run(args: argparse.Namespace) -> int:
    """Train what is missing, write the tables and pictures, print the agreement."""
    require_extra()
    args = complete(args, add_arguments, DEFAULTS)
    if args.random is not None:
        try:
            check_integer("--random", args.random, least=1)
        except ValueError as error:
            raise CommandError(str(error)) from None
    shared, place = shared_settings(args), machine(args)
    if args.grid:
        grids = read_grid(Path(args.grid))
    else:
        images = load(args.data, place.data_dir, args.train_size, args.image_size)
        grids = fitting(DEFAULT_GRID, images.pool_size)
    settings_list = encoders(grids, shared, args.random, args.seed)
    from hsplugin.lab.progress import Progress, exit_status
    from hsplugin.sweep import report

    out = Path(args.out)
    with locked(out):
        there = [run.read_settings() for run in Run.all_in(out)]
        varied = {name for one in there for name in one if one[name] != there[0][name]}
        refuse_mixing(out, settings_list, free=varied.union(*grids), options=False)
        with closing(Progress(settings_list, out)) as progress:
            failures = run_all(settings_list, out, place, progress)
        text = report.write(out, settings_list, place.command)
    if text:
        print(f"\n{text}\n\n{out}/: {', '.join(report.FILES)}")
    return exit_status("sweep", out, failures)
