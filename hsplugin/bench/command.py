"""The ``hsplugin bench`` command."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from hsplugin.bench import measuring, report
from hsplugin.bench.contenders import CONTENDERS
from hsplugin.checks import check_integer, check_t, unknown
from hsplugin.errors import CommandError

SIZES = ("64x128", "128x128", "256x128", "512x128", "1024x128", "2048x128", "4096x128")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=SIZES,
        metavar="NxD",
        help="rows x dimension, such as 4096x128",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=("float32",),
        metavar="DTYPE",
        help=f"one or more of {', '.join(measuring.PRECISIONS)}",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", help="default: all that compute the potential"
    )
    parser.add_argument("--forward-only", action="store_true", help="leave the gradient out")
    parser.add_argument("--t", type=float, default=2.0, help="inverse width of the Gaussian")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds for each size, dtype and mode"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for results")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table for each setting, write bench.csv and bench.png.

    Raises:
        CommandError: If a size, dtype, device or contender is unknown, or nothing could run.
    """
    sizes = [_size(text) for text in args.sizes]
    for name in args.dtypes:
        if name not in measuring.PRECISIONS:
            raise CommandError(unknown("dtype", name, measuring.PRECISIONS))
    names = args.contenders or [name for name, c in CONTENDERS.items() if not c.yardstick]
    for name in names:
        if name not in CONTENDERS:
            raise CommandError(unknown("contender", name, CONTENDERS))
    if "pdist" in names:  # speed-ups are over the first
        names = ["pdist", *(name for name in names if name != "pdist")]
    for name in ("t", "seconds"):
        if not 0 < getattr(args, name) < math.inf:
            raise CommandError(f"--{name} must be above 0 and finite, got {getattr(args, name)}")
    try:
        check_t(args.t)
        if args.threads is not None:
            torch.set_num_threads(check_integer("--threads", args.threads, least=1, most=1024))
    except ValueError as error:
        raise CommandError(str(error)) from None
    device = _device(args.device)
    if device == "cpu" and args.contenders is None:
        names.remove("triton")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        report.write_csv([], args.out / "bench.csv")  # fail now, not after measuring
    except OSError as error:
        raise CommandError(f"--out {args.out}: {error.strerror}") from error

    where = report.machine(device)
    print(f"{where}\n{report.legend(names)}\n")
    modes = measuring.MODES[:1] if args.forward_only else measuring.MODES
    results: list[measuring.Result] = []
    for dtype in args.dtypes:
        for n, d in sizes:
            for mode in modes:
                setting = measuring.Setting(n, d, dtype, device, args.t, mode)
                found = measuring.measure(setting, names, args.seconds)
                for result in found:
                    if result.seconds and result.contender in names and not args.no_memory:
                        result.peak_mib = measuring.peak_mib(result.contender, setting)
                print(report.table(found) + "\n", flush=True)
                results += found
                report.write_csv(results, args.out / "bench.csv")
    if not any(result.seconds for result in results if result.contender in names):
        raise CommandError(f"none of the contenders can run here: {', '.join(names)}")
    try:
        report.picture(results, args.out / "bench.png", where)
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"wrote {args.out}/bench.csv and bench.png")
    return 0


def _size(text: str) -> tuple[int, int]:
    n, _, d = text.lower().partition("x")
    if not (n.isdecimal() and d.isdecimal() and int(n) >= 2 and int(d) >= 1):
        raise CommandError(
            f"--sizes takes NxD with N >= 2 and D >= 1, such as 4096x128, got {text!r}"
        )
    return int(n), int(d)


def _device(name: str) -> str:
    available = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if name == "auto":
        return available[-1]
    if name not in ("cpu", "cuda"):
        raise CommandError(unknown("device", name, ("auto", "cpu", "cuda")))
    if name not in available:
        raise CommandError("--device cuda: torch sees no CUDA device; use --device cpu")
    return name
