"""What a user asks to be measured: from flags to arrays, and from these to what measures them."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsplugin.checks import listed
from hsplugin.errors import CommandError
from hsplugin.readers import Array, find_array, names_in

# How pandas calls the numbers of its rows in a file.
INDEX_OF_PANDAS = re.compile(r"|Unnamed: 0|__index_level_\d+__")

if TYPE_CHECKING:
    from hsplugin.measure.geometry import Geometry, Options, Progress
    from hsplugin.measure.listed import PairList


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say which rows belong together."""
    pairs = parser.add_argument_group("pairs, where not every row has one partner")
    pairs.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="pairs of rows for alignment, by row number counted from 0 or by id; takes the "
        "memory of all features",
    )
    pairs.add_argument(
        "--pair-keys",
        nargs=2,
        metavar="KEY",
        help="names of the two columns of --pairs (default: the only two)",
    )
    pairs.add_argument("--ids", type=Path, metavar="FILE", help="the id of each row")
    pairs.add_argument("--id-key", metavar="KEY", help="its name, in FILE or --ids")
    pairs.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="a score of each pair; without --pairs, alignment is then over the good pairs of FILE "
        "and --positive, all else over the distinct rows of both (as SimCSE does on STS-B)",
    )
    pairs.add_argument("--pair-score", metavar="KEY", help="its name, in --scores, --pairs or FILE")
    pairs.add_argument("--min-score", type=float, metavar="SCORE", help="the least of a good pair")
    sides = parser.add_argument_group("two sides, such as images and texts or users and items")
    sides.add_argument(
        "--other",
        action="append",
        type=Path,
        metavar="FILE",
        help="the other side: measured too, and what lies between; once for each FILE",
    )
    sides.add_argument("--other-key", metavar="KEY", help="its name, in FILE or --other")
    sides.add_argument(
        "--other-ids", type=Path, metavar="FILE", help="the id of each row of the other side"
    )
    sides.add_argument(
        "--other-id-key", metavar="KEY", help="its name, in FILE, --other or --other-ids"
    )
    sides.add_argument(
        "--no-pairs",
        action="store_true",
        help="no alignment of row i with row i where both sides have as many rows",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other.

    Raises:
        CommandError: If so.
    """
    positive, other = (
        bool(getattr(args, name) or getattr(args, f"{name}_key")) for name in ("positive", "other")
    )
    scored = bool(args.scores or args.pair_score)
    ids, other_ids = bool(args.ids or args.id_key), bool(args.other_ids or args.other_id_key)
    for name in ("positive", "other"):
        files = getattr(args, name)
        if files and len(files) != len(args.files):
            raise CommandError(
                f"--{name} is given {len(files)} times for {len(args.files)} files; "
                f"give it once for each, in the same order"
            )
    rules = (
        (positive and other, "--positive and --other exclude each other: views or sides"),
        (positive and args.pairs, "--positive and --pairs exclude each other: each row has one "
         "positive, or a file lists the pairs"),
        (args.no_pairs and args.pairs, "--no-pairs and --pairs exclude each other"),
        (args.no_pairs and not other, "--no-pairs is about --other, which is not given"),
        (args.pair_keys and not args.pairs, "--pair-keys is about --pairs, which is not given"),
        ((ids or other_ids) and not args.pairs, "ids are about --pairs, which is not given"),
        (other_ids and not other, "--other-ids is about --other, which is not given"),
        (ids and other and not other_ids, "--pairs of ids takes --other-ids or --other-id-key too"),
        (other_ids and not ids, "--pairs of ids takes --ids or --id-key too"),
        (scored and args.min_score is None, "scores take --min-score: which pairs are good"),
        (args.min_score is not None and not scored, "--min-score takes --pair-score or --scores"),
        (scored and not (args.pairs or positive), "scores need pairs: give --positive or --pairs"),
        (scored and not args.pairs and (args.labels or args.label_key),
         "labels of scored pairs are not measured; list the pairs with --pairs"),
    )  # fmt: skip
    for broken, message in rules:
        if broken:
            raise CommandError(message)


@dataclass(frozen=True)
class Request:
    """The arrays of one file and what belongs to it.

    Attributes:
        features: The embeddings.
        positives: The other view of each row.
        other: The other side.
        labels: The class of each row.
        scores: A score of each pair.
        least: The least score of a good pair.
        pairs: Those that a file lists, or whether row i of two sides may belong together.
        notes: What was decided in reading, a line each.
    """

    features: Array
    positives: Array | None
    other: Array | None
    labels: Array | None
    scores: Array | None
    least: float
    pairs: PairList | bool
    notes: tuple[str, ...] = ()

    def measure(self, options: Options, progress: Progress) -> Geometry:
        """Measure them.

        Raises:
            CommandError: If a file is damaged, or arrays do not belong together.
        """
        from hsplugin.measure.geometry import measure
        from hsplugin.measure.listed import measure_listed
        from hsplugin.measure.scored import measure_scored
        from hsplugin.measure.sides import measure_sides

        if self.other is not None:
            sides = self.features, self.other
            return measure_sides(*sides, self.pairs, self.labels, options, progress)
        if not isinstance(self.pairs, bool):
            return measure_listed(self.features, self.pairs, self.labels, options, progress)
        if self.positives is not None and self.scores is not None:
            views = self.features, self.positives
            return measure_scored(*views, self.scores, self.least, options, progress)
        return measure(self.features, self.positives, self.labels, options, progress)


def find(args: argparse.Namespace, place: int) -> Request:
    """Find the arrays that belong to a file, by its place among those given.

    Raises:
        CommandError: If one is missing, or more than one could be meant.
    """
    from hsplugin.measure.rows import known_labels

    path = args.files[place]
    # What the same file holds for another purpose is not a feature.
    others = [
        key
        for key, elsewhere in (
            (args.positive_key, args.positive),
            (args.other_key, args.other),
            (args.label_key, args.labels),
            (args.pair_score, args.scores or args.pairs),
            (args.id_key, args.ids),
            (args.other_id_key, args.other_ids or args.other),
        )
        if key and not elsewhere
    ]
    features = find_array(
        path, args.key, dimensions=2, purpose="features (--key)", others=others, pool=args.pool
    )
    aside: dict[str, Array | None] = {}
    for name, purpose in (("positive", "positives"), ("other", "other side")):
        files, key = getattr(args, name), getattr(args, f"{name}_key")
        aside[name] = None
        if files or key:
            # In a file of its own its ids are no features of it.
            ids = name == "other" and files and args.other_id_key and not args.other_ids
            aside[name] = find_array(
                files[place] if files else path,
                key,
                dimensions=2,
                purpose=f"{purpose} (--{name}-key)",
                others=[args.other_id_key] if ids else [],
                pool=args.pool,
            )
    scores = _column(
        args.scores or args.pairs or path, args.pair_score, args.scores, "scores (--pair-score)"
    )
    labels = _column(args.labels or path, args.label_key, args.labels, "labels (--label-key)")
    said: list[str] = []
    if labels is None and (scores is None or args.pairs):
        labels, said = known_labels(path, features)
    least = 0.0 if args.min_score is None else args.min_score
    pairs: PairList | bool = not args.no_pairs
    if args.pairs:
        pairs = _pair_list(args, place, scores, least)
    found = (features, aside["positive"], aside["other"], labels, scores)
    notes = [note for array in found if array is not None for note in array.notes]
    return Request(*found, least, pairs, (*notes, *said))


def _column(path: Path, key: str | None, file: Path | None, purpose: str) -> Array | None:
    """One value a row, if it is asked for by a name or a file of its own."""
    return find_array(path, key, dimensions=1, purpose=purpose) if key or file else None


def _pair_list(
    args: argparse.Namespace, place: int, scores: Array | None, least: float
) -> PairList:
    from hsplugin.measure.listed import PairList

    purpose = "pairs (--pair-keys)"
    keys = args.pair_keys or _two_columns(args.pairs, args.pair_score)
    columns = [find_array(args.pairs, key, dimensions=1, purpose=purpose) for key in keys]
    if not keys:
        columns = [find_array(args.pairs, None, dimensions=2, purpose=purpose)]
    path = args.files[place]
    ids = _column(args.ids or path, args.id_key, args.ids, "ids (--id-key)")
    other_path = args.other[place] if args.other else path
    other_ids = _column(
        args.other_ids or other_path, args.other_id_key, args.other_ids, "ids (--other-id-key)"
    )
    second = other_ids if args.other or args.other_key else ids
    return PairList(str(args.pairs), tuple(columns), (ids, second), scores, least)


def _two_columns(path: Path, score: str | None) -> list[str]:
    """The only two columns of a table of pairs; none if it is one matrix.

    Raises:
        CommandError: If there are more, or the first line may be names or a pair.
    """
    names = [n for n in names_in(path) if n != score and not INDEX_OF_PANDAS.fullmatch(n)]
    if len(names) < 2:
        return []
    if len(names) > 2:
        raise CommandError(
            f"{path}: has the columns {listed(names)}; say by --pair-keys which two are the pairs"
        )
    if names == ["0", "1"] and path.is_file() and _first_fields(path) == [b"0", b"1"]:
        raise CommandError(
            f"{path}: its first line, 0 and 1, may be a pair or names; give it a line of names"
        )
    return names


def _first_fields(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return re.split(rb"[\s,;]+", file.readline(100).strip())
