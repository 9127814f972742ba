"""The ``hsplugin measure`` command."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from hsplugin.checks import check_integer, check_positive, check_t
from hsplugin.errors import CommandError
from hsplugin.measure import request
from hsplugin.readers.pool import POOLS

DESCRIPTION = """\
Alignment, uniformity and the other metrics of embeddings in files, one row per sample: numpy's,
torch's and safetensors, csv and other text, JSON and JSON lines, parquet, Arrow and Feather, HDF5,
GloVe and word2vec, fvecs and fbin, and folders of their parts. All but JSON are streamed, so they
may be larger than memory. Files are not trusted: nothing in them is executed.

In tables, features are one column of vectors or one numbered family of columns such as x0, x1, x2.
Without --labels, a column such as "label" or "class" gives the classes. What is left out is said.

Intervals are confidence intervals for the population, if rows are independent samples of it. A
grouped jackknife gives them and takes out bias: the rank or spectrum of few rows can lie at one end
of its interval. Pairs in a file (--pairs) may share rows; their interval takes that into account.

Several files are one table, with the differences to the first. If row i of each is the same sample,
their intervals take that into account too.

  hsplugin measure embeddings.npy
  hsplugin measure view1.npy --positive view2.npy --labels labels.npy
  hsplugin measure run1.npz run2.npz --key z1 --positive-key z2 --label-key y --picture runs.png
  hsplugin measure table.csv --key 'a*' --positive-key 'b*' --label-key class
  hsplugin measure run1.npy run2.npy --sort uniformity --csv runs.csv --html runs.html
  hsplugin measure sts.parquet --key a --positive-key b --pair-score score --min-score 4
  hsplugin measure clip.npz --key image_embeds --other-key text_embeds
  hsplugin measure users.npy --other items.npy --pairs clicks.csv
"""
# Options with a bound, each with the function that checks it.
CHECKS: dict[str, Callable[[str, object], object]] = {
    "alpha": check_positive,
    "t": lambda name, value: check_t(value),
    "max-samples": partial(check_integer, least=4),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="embeddings")
    parser.add_argument(
        "--key",
        help="name of the features in each file; in tables, column names or patterns, separated by "
        "commas, an exclamation mark before those to leave out, such as '*,!id' (default: the only "
        "ones that there can be)",
    )
    parser.add_argument(
        "--positive",
        action="append",
        type=Path,
        metavar="FILE",
        help="the other view of each row, for alignment and LiDAR; once for each FILE",
    )
    parser.add_argument("--positive-key", metavar="KEY", help="its name, in FILE or --positive")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class of each row")
    parser.add_argument("--label-key", metavar="KEY", help="its name, in FILE or --labels")
    request.add_arguments(parser)
    parser.add_argument(
        "--pool",
        choices=POOLS,
        help="make one vector of rows that are tokens (N, L, d) or maps (N, d, h, w): their mean, "
        "their maximum, the first token (cls) or all values (flatten); what pads a row counts",
    )
    parser.add_argument("--alpha", type=float, default=2.0, help="exponent of alignment")
    parser.add_argument("--t", type=float, default=2.0, help="inverse width of uniformity")
    parser.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="do not scale rows to unit length for the metrics on the sphere",
    )
    parser.add_argument(
        "--max-samples",
        type=int,
        default=10_000,
        help="rows for uniformity, a random sample if there are more (default 10000)",
    )
    parser.add_argument(
        "--fit-range",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="range of eigenvalues that alpha-ReQ fits (default 10 100)",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="level of the intervals")
    parser.add_argument(
        "--no-intervals",
        dest="intervals",
        action="store_false",
        help="no jackknife: a sixteenth of the memory, and a fifth of the eigenvalue problems",
    )
    parser.add_argument("--device", default="cpu", help="device to compute on, such as cuda")
    parser.add_argument(
        "--sort",
        metavar="METRIC",
        help="order several files by a metric, the best first; the least where neither end is best",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a line a file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw (.png, .svg, .pdf)")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with tables and figures"
    )


def run(args: argparse.Namespace) -> int:
    """Measure each file and report.

    Raises:
        CommandError: If a file or an option cannot be used.
    """
    from hsplugin.measure.comparison import as_csv, as_text, check_metric, compare
    from hsplugin.measure.geometry import Options
    from hsplugin.measure.report import as_json, picture, table

    _check(args)
    if args.sort:
        check_metric(args.sort)
    options = Options(
        alpha=args.alpha,
        t=args.t,
        normalize=args.normalize,
        max_samples=args.max_samples,
        fit_range=None if args.fit_range is None else tuple(args.fit_range),
        confidence=args.confidence,
        intervals=args.intervals,
        device=args.device,
    )
    geometries = []
    for place in range(len(args.files)):
        asked = request.find(args, place)
        features = asked.features
        for note in asked.notes:
            print(f"hsplugin measure: note: {note}", file=sys.stderr)
        try:
            with _progress(features.name, features.rows) as progress:
                geometries.append(asked.measure(options, progress))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            spare = "; --no-intervals takes a sixteenth" if options.intervals else ""
            raise CommandError(
                f"{features.name}: {features.shape[0]} dimensions take more memory than there "
                f"is{spare}"
            ) from error
    entries = compare(geometries, options, args.sort)
    if len(entries) == 1:
        print(table(geometries[0], options), flush=True)
    else:
        print(as_text(entries, options, shutil.get_terminal_size((120, 24)).columns), flush=True)
    try:
        if args.json:
            args.json.write_text(as_json(geometries, options) + "\n")
        if args.csv:
            args.csv.write_text(as_csv(entries), encoding="utf-8")
        if args.picture:
            picture(geometries, args.picture)
        if args.html:
            from hsplugin.measure.page import page

            # A command line may hold bytes that are not Unicode.
            args.html.write_text(
                page(entries, options), encoding="utf-8", errors="backslashreplace"
            )
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write: {error}") from error
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, check in CHECKS.items():
        try:
            check(name, getattr(args, name.replace("-", "_")))
        except ValueError as error:
            raise CommandError(f"--{error}") from error
    if not 0 < args.confidence < 1:
        raise CommandError(f"--confidence must lie between 0 and 1, got {args.confidence}")
    request.check(args)
    try:
        torch.ones((), dtype=torch.float64, device=args.device).item()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise CommandError(f"--device {args.device}: {str(error).splitlines()[0]}") from error


@contextmanager
def _progress(name: str, rows: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many rows are read, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done: None
        return
    # disable=None shows nothing where the output is not a terminal.
    options = {"unit": " rows", "delay": 0.5, "leave": False, "disable": None}
    with tqdm(desc=name, total=rows, **options) as bar:
        yield lambda done: bar.update(done - bar.n)
