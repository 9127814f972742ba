"""The ``hsplugin sweep`` command line: many encoders, and what foretells their accuracy."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from hsplugin.checks import unknown
from hsplugin.compare.data import DATA
from hsplugin.compare.settings import Machine, RunSettings
from hsplugin.errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    defaults = RunSettings(method="")
    what = parser.add_argument_group("which encoders")
    what.add_argument(
        "--grid",
        metavar="FILE",
        help="YAML: a mapping, or a list of them, from names to values, such as "
        "{method: [simclr], temperature: [0.1, 0.5], dim: [16, 64]}; default: about 70 encoders "
        "over weights, alpha, t, temperature, dimension, batch size, learning rate and epochs",
    )
    what.add_argument("--random", type=int, metavar="N", help="only N of them, drawn at random")
    what.add_argument("--seed", type=int, default=0, help="of every encoder, and of the draw")
    what.add_argument("--data", default=defaults.data, help=f"one of {', '.join(DATA)}")
    what.add_argument("--data-dir", help="folder that holds the data set's files")
    what.add_argument("--train-size", type=int, help="use only so many training images")
    budget = parser.add_argument_group("budget, where the grid says nothing else")
    budget.add_argument("--epochs", type=int, help="default: what suits the data set")
    budget.add_argument("--batch-size", type=int, default=defaults.batch_size)
    budget.add_argument("--lr", type=float, default=defaults.lr)
    budget.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    budget.add_argument("--dim", type=int, default=defaults.dim, help="projection dimension")
    budget.add_argument("--backbone", default=defaults.backbone)
    budget.add_argument(
        "--validations", type=int, default=1, help="measurements, and places to resume, in a run"
    )
    budget.add_argument("--precision", default=defaults.precision, help="Lightning's flag")
    where = parser.add_argument_group("where")
    where.add_argument("--out", default="sweep", help="folder for the results")
    where.add_argument(
        "--jobs", type=int, default=1, help="encoders at a time; on a CPU as many as cores"
    )
    where.add_argument("--threads", type=int, help="CPU threads of one encoder")
    where.add_argument("--accelerator", default="auto", help="Lightning's flag")


def run(args: argparse.Namespace) -> int:
    """Train what is missing, write the tables and pictures, print the agreement."""
    settings_list = all_settings(args)
    from hsplugin.compare import runs, sweep_report
    from hsplugin.compare.progress import Progress, titles

    out = Path(args.out)
    machine = Machine(
        data_dir=args.data_dir,
        threads=args.threads or max(1, (os.cpu_count() or 1) // args.jobs),
        accelerator=args.accelerator,
    )
    names = titles(settings_list)
    progress = Progress(settings_list, out, lambda settings: names[settings.name])
    try:
        failures = runs.run_all(settings_list, out, args.jobs, machine, progress)
        progress.close()
        text = sweep_report.write(out, settings_list, ["hsplugin", *sys.argv[1:]])
    except OSError as error:
        raise CommandError(runs.machine_error(error, out)) from None
    if text:
        print(f"\n{text}\n\n{out}/: {', '.join(sweep_report.FILES)}")
    for failure in failures:
        log = runs.run_folder(out, failure.settings) / "error.log"
        print(
            f"hsplugin sweep: {failure.settings.name} failed: {failure.reason} (see {log})",
            file=sys.stderr,
        )
    return 1 if failures else 0


def all_settings(args: argparse.Namespace) -> list[RunSettings]:
    """Every encoder that the flags ask for.

    Raises:
        CommandError: Unknown or impossible values.
    """
    from hsplugin.compare.grid import DEFAULT_GRID, encoders, read_grid

    if args.data not in DATA:
        raise CommandError(unknown("data set", args.data, DATA))
    for flag in ("random", "epochs", "validations", "jobs", "threads"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise CommandError(f"--{flag} {value}: must be at least 1")
    grids = read_grid(Path(args.grid)) if args.grid else DEFAULT_GRID
    base: dict[str, Any] = {
        "seed": args.seed,
        "data": args.data,
        "train_size": args.train_size,
        "epochs": DATA[args.data].epochs if args.epochs is None else args.epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "weight_decay": args.weight_decay,
        "dim": args.dim,
        "backbone": args.backbone,
        "precision": args.precision,
        "validations": args.validations,
    }
    return encoders(grids, base, args.random, args.seed)
