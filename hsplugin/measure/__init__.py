"""``hsplugin measure``: the geometry of embeddings that exist already."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from hsplugin.errors import CommandError

DESCRIPTION = """\
Alignment, uniformity and the other metrics of embeddings in .npy, .npz, .pt, .safetensors, .csv or
.parquet files: one row a sample. Files are streamed, so they may be larger than memory, and are
never trusted: nothing in them is executed. Reading .pt takes torch 2.10, the first to keep to that.

Intervals are for the population that the rows are independent samples of. They come from a grouped
jackknife, which also takes out the bias: of few rows, a rank or spectrum lies outside its interval.

  hsplugin measure embeddings.npy
  hsplugin measure view1.npy --positive view2.npy --labels labels.npy
  hsplugin measure run1.npz run2.npz --key z1 --positive-key z2 --label-key y --picture runs.png
  hsplugin measure table.csv --key 'a*' --positive-key 'b*' --label-key class
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="embeddings")
    parser.add_argument(
        "--key",
        help="the features' name within each file; in tables, names or patterns of columns, with "
        "commas (default: the only matrix, or all columns of numbers)",
    )
    parser.add_argument(
        "--positive",
        action="append",
        type=Path,
        metavar="FILE",
        help="other view of each row, for alignment and LiDAR; once for each FILE",
    )
    parser.add_argument("--positive-key", metavar="KEY", help="its name, in FILE or --positive")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class of each row")
    parser.add_argument("--label-key", metavar="KEY", help="their name, in FILE or --labels")
    parser.add_argument("--alpha", type=float, default=2.0, help="exponent of alignment")
    parser.add_argument("--t", type=float, default=2.0, help="inverse width of uniformity")
    parser.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="do not scale rows to unit length for the metrics of the sphere",
    )
    parser.add_argument(
        "--max-samples",
        type=int,
        default=10_000,
        help="rows that uniformity is measured over, drawn at random from more (default 10000)",
    )
    parser.add_argument(
        "--fit-range",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="eigenvalues that alpha-ReQ fits (default 10 100)",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals")
    parser.add_argument(
        "--no-intervals",
        dest="intervals",
        action="store_false",
        help="no jackknife: a sixteenth of the memory and eigenvalue problems",
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Measure each file and report.

    Raises:
        CommandError: If a file or an option cannot be used.
    """
    from hsplugin.measure.geometry import Options, measure
    from hsplugin.measure.readers import Array, find_array
    from hsplugin.measure.report import as_json, picture, table

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
    _check(args)
    geometries = []
    for place, path in enumerate(args.files):
        features = find_array(
            path,
            args.key,
            dimensions=2,
            purpose="features (--key)",
            others=[
                key
                for key, elsewhere in (
                    (args.positive_key, args.positive),
                    (args.label_key, args.labels),
                )
                if key and not elsewhere
            ],
        )
        positives: Array | None = None
        if args.positive or args.positive_key:
            positives = find_array(
                args.positive[place] if args.positive else path,
                args.positive_key,
                dimensions=2,
                purpose="positives (--positive-key)",
            )
        labels: Array | None = None
        if args.labels or args.label_key:
            labels = find_array(
                args.labels or path, args.label_key, dimensions=1, purpose="labels (--label-key)"
            )
        try:
            with _Progress(features.name, features.rows) as progress:
                geometries.append(measure(features, positives, labels, options, progress))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            spare = "; --no-intervals takes a sixteenth" if options.intervals else ""
            raise CommandError(
                f"{features.name}: {features.shape[0]} dimensions take more memory than there "
                f"is{spare}"
            ) from error
        print(table(geometries[-1], options), flush=True)
    try:
        if args.json:
            args.json.write_text(as_json(geometries, options) + "\n")
        if args.picture:
            picture(geometries, args.picture)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write: {error}") from error
    return 0


def _check(args: argparse.Namespace) -> None:
    import torch

    for name in ("alpha", "t"):
        if not 0 < getattr(args, name) < float("inf"):
            raise CommandError(f"--{name} must be above 0, got {getattr(args, name)}")
    if not 0 < args.confidence < 1:
        raise CommandError(f"--confidence must lie between 0 and 1, got {args.confidence}")
    if args.max_samples < 4:
        raise CommandError(f"--max-samples must be at least 4, got {args.max_samples}")
    if args.positive and len(args.positive) != len(args.files):
        raise CommandError(
            f"--positive is given {len(args.positive)} times for {len(args.files)} files; "
            f"give it once for each, in their order"
        )
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {args.device}: {str(error).splitlines()[0]}") from error


class _Progress:
    """How far the reading is, on one line of a terminal; nothing where there is none."""

    def __init__(self, name: str, rows: int | None) -> None:
        self.name, self.rows = name, rows
        self.shown = time.monotonic()
        self.wrote = False

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            share = f" of {self.rows} ({done / self.rows:.0%})" if self.rows else ""
            print(f"\r\033[K{self.name}: {done} rows{share}", end="", file=sys.stderr, flush=True)
            self.wrote = True

    def __exit__(self, *_: object) -> None:
        if self.wrote:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
