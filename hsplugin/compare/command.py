"""The ``hsplugin compare`` command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from hsplugin.compare.data import DATA
from hsplugin.compare.methods import METHODS, UNTRAINED, options_of
from hsplugin.compare.settings import Machine, RunSettings
from hsplugin.errors import CommandError, unknown

FIRST_METHODS = ["align_uniform", "hypersphere", "simclr", "barlowtwins", "vicreg"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    defaults = RunSettings(method="")
    what = parser.add_argument_group("what to compare")
    what.add_argument("--data", default=defaults.data, help=f"one of {', '.join(DATA)}")
    what.add_argument("--data-dir", help="folder that holds the data set's files")
    what.add_argument("--train-size", type=int, help="use only so many training images")
    what.add_argument(
        "--labels-per-class",
        type=int,
        help="labels for kNN and linear probe, mean over draws; default: all, 5 for digits; "
        "0 means all",
    )
    what.add_argument(
        "--methods",
        nargs="+",
        default=FIRST_METHODS,
        metavar="METHOD",
        help=f"any of {', '.join(METHODS)}; default: {' '.join(FIRST_METHODS)}",
    )
    what.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD.OPTION=VALUE",
        help="a method's own hyper-parameter, such as simclr.temperature=0.2",
    )
    budget = parser.add_argument_group("budget, the same for all methods")
    budget.add_argument("--epochs", type=int, help="default: what suits the data set")
    budget.add_argument("--batch-size", type=int, help="default: 256, for digits 128")
    budget.add_argument("--lr", type=float, default=defaults.lr)
    budget.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    budget.add_argument("--dim", type=int, default=defaults.dim, help="projection dimension")
    budget.add_argument("--backbone", default=defaults.backbone)
    budget.add_argument(
        "--validations", type=int, default=defaults.validations, help="measurements in a run"
    )
    budget.add_argument("--precision", default=defaults.precision, help="Lightning's flag")
    where = parser.add_argument_group("where")
    where.add_argument("--out", default="comparison", help="folder for the results")
    where.add_argument(
        "--jobs", type=int, help="runs at a time; default: 1 on a GPU, else one a core, up to 4"
    )
    where.add_argument("--threads", type=int, help="CPU threads of one run")
    where.add_argument("--accelerator", default="auto", help="Lightning's flag")
    where.add_argument("--devices", type=int, default=1, help="devices of one run")
    where.add_argument("--config", help="YAML file with any of these flags; flags win over it")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, write the tables, print the summary."""
    settings_list = all_settings(args)
    from hsplugin.compare import report, runs
    from hsplugin.compare.progress import Progress

    out = Path(args.out)
    jobs = args.jobs or runs.suitable_jobs(args.accelerator)
    machine = Machine(
        data_dir=args.data_dir,
        threads=args.threads or max(1, (os.cpu_count() or 1) // jobs),
        accelerator=args.accelerator,
        devices=args.devices,
    )
    check_same_settings(out, settings_list)
    progress = Progress(settings_list, out)
    failures = runs.run_all(settings_list, out, jobs, machine, progress)
    progress.close()
    table = report.write(out, ["hsplugin", *sys.argv[1:]])
    print(f"\n{table}\n\n{out}/: results.csv, history.csv, summary.md, plane.png, histograms.png")
    for failure in failures:
        log = runs.run_folder(out, failure.settings) / "error.log"
        print(
            f"hsplugin compare: {failure.settings.name} failed: {failure.reason} (see {log})",
            file=sys.stderr,
        )
    return 1 if failures else 0


def all_settings(args: argparse.Namespace) -> list[RunSettings]:
    """Every run that the flags ask for: the untrained floor first, then seed by seed.

    Raises:
        CommandError: Unknown or impossible values.
    """
    if args.data not in DATA:
        raise CommandError(unknown("data set", args.data, DATA))
    epochs = DATA[args.data].epochs if args.epochs is None else args.epochs
    batch_size = args.batch_size or DATA[args.data].batch_size
    labels = args.labels_per_class
    if labels is None:
        labels = DATA[args.data].labels_per_class
    for flag, value, least in (
        ("labels-per-class", labels, 0),
        ("epochs", epochs, 1),
        ("batch-size", batch_size, 2),
        ("dim", args.dim, 2),
        ("jobs", args.jobs, 1),
        ("devices", args.devices, 1),
        ("threads", args.threads, 1),
    ):
        if value is not None and value < least:
            raise CommandError(f"--{flag} {value}: must be at least {least}")
    shared: dict[str, Any] = {
        "data": args.data,
        "train_size": args.train_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": args.lr,
        "weight_decay": args.weight_decay,
        "dim": args.dim,
        "backbone": args.backbone,
        "validations": args.validations,
        "precision": args.precision,
        "labels_per_class": labels or None,
    }
    given = parse_options(args.set)
    for method in given:
        if method not in METHODS:
            raise CommandError(unknown("method", method, METHODS))
    methods = [m for m in dict.fromkeys(args.methods) if m != UNTRAINED]
    for method in methods:
        options_of(method, given.get(method, {}), shared)
    return [
        RunSettings(method=method, seed=seed, options=given.get(method, {}), **shared)
        for seed in dict.fromkeys(args.seeds)
        for method in [UNTRAINED, *methods]
    ]


def parse_options(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Turn ``["simclr.temperature=0.2"]`` into ``{"simclr": {"temperature": 0.2}}``."""
    import yaml

    options: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, name = target.partition(".")
        if not (equals and dot and method and name and text):
            raise CommandError(f"--set {assignment!r}: write METHOD.OPTION=VALUE")
        options.setdefault(method, {})[name] = yaml.safe_load(text)
    return options


def check_same_settings(out: Path, settings_list: list[RunSettings]) -> None:
    """Refuse to mix runs of different settings in one table.

    Raises:
        CommandError: The folder holds runs whose shared settings, or whose options for one of
            the methods, differ from those asked for.
    """
    from hsplugin.compare.files import read_json

    for path in sorted((out / "runs").glob("*/settings.json")):
        there = RunSettings(**read_json(path))
        for ours in settings_list:
            differing = [
                f"{name} {there.shared()[name]} there, {value} asked for"
                for name, value in ours.shared().items()
                if there.shared()[name] != value
            ]
            if there.method == ours.method and dict(there.options) != dict(ours.options):
                differing.append(
                    f"options of {ours.method} {there.options} there, {ours.options} asked for"
                )
            if differing:
                raise CommandError(
                    f"{out} holds runs with other settings ({'; '.join(differing)}); "
                    "give another --out, or the same settings"
                )
