"""The ``hsplugin compare`` command line."""

from __future__ import annotations

import argparse
import math
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.flags import add_flags, check, complete, defaults_of, parse_yaml
from hsplugin.lab.locks import locked
from hsplugin.lab.methods import METHODS, UNTRAINED, options_of
from hsplugin.lab.request import add_slurm_flag, machine, shared_settings
from hsplugin.lab.run import refuse_mixing
from hsplugin.lab.runs import Failure, require_extra, run_all
from hsplugin.lab.settings import Machine, RunSettings

FIRST_METHODS = [
    *("align_uniform", "align_uniform_tau", "simclr", "hypersphere", "barlowtwins", "vicreg"),
]
FILES = [
    *("results.csv", "history.csv", "differences.csv", "tuning.csv"),
    *("summary.md", "plane.png", "histograms.png", "report.html"),
]
DEFAULTS: dict[str, Any] = {
    **defaults_of(RunSettings, Machine, without=["seed"]),
    "methods": FIRST_METHODS,
    "seeds": [0, 1],
    "set": [],
    "slurm": [],
    "tune": False,
    "out": "comparison",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; one that is not given is absent, so that a config file may give it."""
    add_flags(parser, RunSettings, Machine, defaults=DEFAULTS)
    add_slurm_flag(parser)
    parser.add_argument("--out", help="folder for the results; default: comparison")
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"any of {', '.join(METHODS)}; default: {' '.join(FIRST_METHODS)}",
    )
    what.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="seeds of the runs; default: 0 1"
    )
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="METHOD.OPTION=VALUE",
        help="a method's own hyper-parameter, such as simclr.temperature=0.2; of a list, such as "
        "simclr.temperature=[0.2,0.5], every value is a method of its own",
    )
    what.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        help="first choose each method's hyper-parameters on the validation split, among a few "
        "candidates; those given by --set are kept",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, write the tables, print the summary."""
    require_extra()
    args = complete(args, add_arguments, DEFAULTS)
    settings_list = all_settings(args)
    place = machine(args)
    from hsplugin.compare import report, tuning
    from hsplugin.lab.progress import Progress, exit_status

    out = Path(args.out)
    failures: list[Failure] = []
    with locked(out):
        refuse_mixing(out, settings_list, options=not args.tune)
        if args.tune:
            settings_list, failures = tuning.tune(settings_list, out, place)
            refuse_mixing(out, settings_list)
        with closing(Progress(settings_list, out)) as progress:
            failures += run_all(settings_list, out, place, progress)
        table = report.write(out, place.command)
    if table:
        print(f"\n{table}\n\n{out}/: {', '.join(name for name in FILES if (out / name).exists())}")
    return exit_status("compare", out, failures)


def all_settings(args: argparse.Namespace) -> list[RunSettings]:
    """Every run that the completed flags ask for: the untrained encoder first, then seed by seed.

    Raises:
        CommandError: Unknown or impossible values.
    """
    shared = shared_settings(args)
    given = {method: _each(options) for method, options in parse_options(args.set).items()}
    if args.tune and any(len(options) > 1 for options in given.values()):
        raise CommandError("--tune chooses values itself; give --set one value an option")
    for seed in args.seeds:
        try:
            check(RunSettings, {"seed": seed}, lambda _: "--seeds")
        except ValueError as error:
            raise CommandError(str(error)) from None
    methods = list(dict.fromkeys(args.methods))
    if args.framework == "solo":
        if args.compile:
            raise CommandError("--compile is for Lightly's methods; solo-learn is run as it is")
        # Only the checkout knows its methods, and it trains no untrained encoder.
        for method, several in given.items():
            for name, value in ((n, v) for options in several for n, v in options.items()):
                if not isinstance(value, str | int) and not _is_finite(value):
                    raise CommandError(
                        f"--set {method}.{name}={value}: give a finite number, text, true or false"
                    )
        if args.tune:
            raise CommandError("--tune knows no candidates of solo-learn's methods; use --set")
        if not args.solo_checkout:
            raise CommandError("--framework solo needs --solo-checkout DIR")
    else:
        for method in given:
            if method not in METHODS:
                raise CommandError(unknown("method", method, METHODS))
        methods = [UNTRAINED, *(method for method in methods if method != UNTRAINED)]
        for method in methods:
            for options in given.get(method, [{}]):
                options_of(method, options, shared)
    return [
        RunSettings(method=method, seed=seed, options=options, **shared)
        for seed in dict.fromkeys(args.seeds)
        for method in methods
        for options in given.get(method, [{}])
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _each(options: dict[str, Any]) -> list[dict[str, Any]]:
    """One mapping for each combination of the values that are lists.

    Raises:
        CommandError: A list is empty.
    """
    if empty := [name for name, value in options.items() if value == []]:
        raise CommandError(f"--set gives {empty[0]} an empty list; write at least one value")
    values = [value if isinstance(value, list) else [value] for value in options.values()]
    return [dict(zip(options, combination, strict=True)) for combination in product(*values)]


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 and nan as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_options(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Turn ``["simclr.temperature=0.2"]`` into ``{"simclr": {"temperature": 0.2}}``."""
    options: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, name = target.partition(".")
        if not (equals and dot and method and name and text):
            raise CommandError(f"--set {assignment!r}: write METHOD.OPTION=VALUE")
        try:
            options.setdefault(method, {})[name] = _number(parse_yaml(text))
        except ValueError:
            raise CommandError(f"--set {assignment!r}: {text!r} is not a YAML value") from None
    return options
