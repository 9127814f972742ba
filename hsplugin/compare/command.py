"""The ``hsplugin compare`` command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from hsplugin.checks import unknown
from hsplugin.compare.data import DATA, source
from hsplugin.compare.methods import METHODS, UNTRAINED, options_of
from hsplugin.compare.settings import Machine, RunSettings
from hsplugin.errors import CommandError

FIRST_METHODS = ["align_uniform", "hypersphere", "simclr", "barlowtwins", "vicreg"]


DEFAULTS: dict[str, Any] = {
    **RunSettings(method="").shared(),
    "epochs": None,
    "batch_size": None,
    "labels_per_class": None,
    "methods": FIRST_METHODS,
    "seeds": [0],
    "set": [],
    "tune": False,
    "out": "comparison",
    "jobs": None,
    "threads": None,
    "data_dir": None,
    "accelerator": "auto",
    "devices": 1,
    "solo_checkout": None,
    "config": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; one that is not given is absent, so that a config file may give it."""
    parser.argument_default = argparse.SUPPRESS
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--data", help=f"one of {', '.join(DATA)}, or a folder of images; default: digits"
    )
    what.add_argument("--data-dir", help="folder that holds the data set's files")
    what.add_argument("--train-size", type=int, help="use only so many training images")
    what.add_argument("--image-size", type=int, help="side of a folder's images; default: 64")
    what.add_argument(
        "--labels-per-class",
        type=int,
        help="labels for kNN and linear probe, mean over draws; default: all, 5 for digits; "
        "0 means all",
    )
    what.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"any of {', '.join(METHODS)}; default: {' '.join(FIRST_METHODS)}",
    )
    what.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0")
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="METHOD.OPTION=VALUE",
        help="a method's own hyper-parameter, such as simclr.temperature=0.2",
    )
    what.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        help="first choose each method's hyper-parameters on the validation split, among a few "
        "candidates; those given by --set are kept",
    )
    what.add_argument(
        "--framework",
        choices=("lightly", "solo"),
        help="whose methods; solo runs main_pretrain.py of --solo-checkout (default: lightly)",
    )
    what.add_argument("--solo-checkout", metavar="DIR", help="an unmodified solo-learn checkout")
    budget = parser.add_argument_group("budget, the same for all methods")
    budget.add_argument("--epochs", type=int, help="default: what suits the data set")
    budget.add_argument("--batch-size", type=int, help="default: 256, for digits 128")
    budget.add_argument("--lr", type=float, help=f"of AdamW; default: {DEFAULTS['lr']}")
    budget.add_argument("--weight-decay", type=float, help=f"default: {DEFAULTS['weight_decay']}")
    budget.add_argument("--dim", type=int, help=f"projection dimension; default: {DEFAULTS['dim']}")
    budget.add_argument(
        "--backbone", help="small-conv (default), or a model of torchvision or timm"
    )
    budget.add_argument(
        "--validations", type=int, help=f"measurements in a run; default {DEFAULTS['validations']}"
    )
    budget.add_argument("--precision", help="Lightning's flag, such as bf16-mixed")
    where = parser.add_argument_group("where")
    where.add_argument("--out", help="folder for the results; default: comparison")
    where.add_argument(
        "--jobs", type=int, help="runs at a time; default: 1 on a GPU, else one a core, up to 4"
    )
    where.add_argument("--threads", type=int, help="CPU threads of one run")
    where.add_argument("--accelerator", help="Lightning's flag; default: auto")
    where.add_argument("--devices", type=int, help="devices of one run; default: 1")
    where.add_argument("--config", help="YAML file with any of these flags; flags win over it")


class _FileParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{self.prog}: {message}")


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what the command line leaves open: from the config file, then from the defaults.

    A config file holds the flags as YAML, with a list where a flag takes several values and
    ``set: {simclr: {temperature: 0.2}}`` for the methods' options.

    Raises:
        CommandError: The file cannot be read, or holds an unknown flag or an impossible value.
    """
    given = vars(args)
    from_file: dict[str, Any] = {}
    if given.get("config"):
        parser = _FileParser(prog=given["config"], add_help=False, allow_abbrev=False)
        add_arguments(parser)
        from_file = vars(parser.parse_args(_as_flags(Path(given["config"]))))
    merged = {**DEFAULTS, **from_file, **given}
    merged["set"] = [*from_file.get("set", []), *given.get("set", [])]
    return argparse.Namespace(**merged)


def _as_flags(path: Path) -> list[str]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise CommandError(f"{path} must map flags to values")
    known = {name.replace("_", "-"): name for name in DEFAULTS if name not in ("config",)}
    flags: list[str] = []
    for key, value in content.items():
        flag = str(key).replace("_", "-")
        if flag not in known:
            raise CommandError(f"{path}: {unknown('flag', str(key), known)}")
        if flag == "set" and isinstance(value, dict):
            value = [
                f"{method}.{option}={setting}"
                for method, options in value.items()
                for option, setting in (options or {}).items()
            ]
        if flag == "tune" and value in (True, False):
            flags.append("--tune" if value else "--no-tune")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{flag}", *map(str, values)]
    return flags


def run(args: argparse.Namespace) -> int:
    """Run what is missing, write the tables, print the summary."""
    args = complete(args)
    settings_list = all_settings(args)
    from hsplugin.compare import report, runs, tuning
    from hsplugin.compare.progress import Progress

    out = Path(args.out)
    jobs = args.jobs or runs.suitable_jobs(args.accelerator)
    machine = Machine(
        data_dir=args.data_dir,
        threads=args.threads or max(1, (os.cpu_count() or 1) // jobs),
        accelerator=args.accelerator,
        devices=args.devices,
        solo_checkout=args.solo_checkout,
        command=("hsplugin", *sys.argv[1:]),
    )
    check_same_settings(out, settings_list, options=not args.tune)
    failures: list[runs.Failure] = []
    try:
        if args.tune:
            settings_list, failures = tuning.tune(settings_list, out, jobs, machine)
            check_same_settings(out, settings_list)
        progress = Progress(settings_list, out)
        failures += runs.run_all(settings_list, out, jobs, machine, progress)
        progress.close()
        table = report.write(out, machine.command)
    except OSError as error:
        raise CommandError(runs.machine_error(error, out)) from None
    if table:
        files = "results.csv, history.csv, summary.md, plane.png, histograms.png"
        print(f"\n{table}\n\n{out}/: {files}{', tuning.csv' if args.tune else ''}")
    for failure in failures:
        # A run that was killed leaves no log; a candidate's is among those of the tuning.
        log = next(out.glob(f"**/runs/{failure.settings.name}/error.log"), None)
        see = f" (see {log})" if log else ""
        print(
            f"hsplugin compare: {failure.settings.name} failed: {failure.reason}{see}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def all_settings(args: argparse.Namespace) -> list[RunSettings]:
    """Every run that the completed flags ask for: the untrained floor first, then seed by seed.

    Raises:
        CommandError: Unknown or impossible values.
    """
    data = source(args.data)
    epochs = data.epochs if args.epochs is None else args.epochs
    batch_size = data.batch_size if args.batch_size is None else args.batch_size
    labels = args.labels_per_class
    if labels is None:
        labels = data.labels_per_class
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
        "image_size": args.image_size,
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
    if args.framework == "solo":
        if args.tune:
            raise CommandError("--tune knows no candidates of solo-learn's methods; use --set")
        if not args.solo_checkout:
            raise CommandError("--framework solo needs --solo-checkout DIR")
        # Which methods there are, and the floor under them, only the checkout knows.
        return [
            RunSettings(
                method=method,
                seed=seed,
                framework="solo",
                options=given.get(method, {}),
                **shared,
            )
            for seed in dict.fromkeys(args.seeds)
            for method in dict.fromkeys(args.methods)
        ]
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


def check_same_settings(
    out: Path, settings_list: list[RunSettings], *, options: bool = True
) -> None:
    """Refuse to mix runs of different settings in one table; options too, once they are known.

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
            if (
                options
                and there.method == ours.method
                and dict(there.options) != dict(ours.options)
            ):
                differing.append(
                    f"options of {ours.method} {there.options} there, {ours.options} asked for"
                )
            if differing:
                raise CommandError(
                    f"{out} holds runs with other settings ({'; '.join(differing)}); "
                    "give another --out, or the same settings"
                )
