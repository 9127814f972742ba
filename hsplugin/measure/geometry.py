"""Every metric of embeddings that stream by, with confidence intervals by the grouped jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsplugin.errors import CommandError
from hsplugin.functional import pair_distances
from hsplugin.measure.estimates import Estimate, missing_value
from hsplugin.measure.rows import (
    aligned_chunks,
    check_dimensions,
    check_rows,
    classes_of,
    tensor_of,
)
from hsplugin.metrics import METRICS, GeometryMetric, Uniformity, UniformityReport
from hsplugin.metrics.alpha_req import check_fit_range
from hsplugin.metrics.directions import directions, largest_entries
from hsplugin.metrics.jackknife import GroupedMetrics
from hsplugin.metrics.sampling import GROUPS, Jackknifed
from hsplugin.readers import Array

MOST_BYTES_OF_CLASS_SUMS = 2**31
DISTANCE_BINS = 50
# With fewer rows a dimension, a jackknife cannot take out the bias of a spectrum.
ROWS_A_DIMENSION = 10
# With fewer rows there is no interval.
FEWEST_ROWS = 4
SHOWN_SAMPLE = 2000
# Share of the uniformity, or of 1, that rounding may be.
LARGEST_ROUNDING = 0.05

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How embeddings are measured: the command's options of the same names."""

    alpha: float = 2.0
    t: float = 2.0
    normalize: bool = True
    max_samples: int = 10_000
    fit_range: tuple[int, int] | None = None
    confidence: float = 0.95
    intervals: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class Geometry:
    """What was measured of one array of features.

    Attributes:
        name: The features' name.
        rows: How many there are.
        zero_rows: How many of them are zero and have no place on the sphere.
        dim: Their dimension.
        metrics: Estimates by metric, in the order of the table.
        uniformity: Optimum, gap, rows kept, and the uniformity of each class by its number.
        classes: The labels, in the order of their numbers.
        spectrum: Eigenvalues of the covariance, descending.
        sample: Some of the features, on the sphere unless told otherwise.
        sample_classes: Their classes' numbers, -1 without labels.
        distances: Counts of positive distances in 50 bins over [0, 2], None without pairs.
        other: What was measured of the other side, such as the texts of images.
        remarks: What a reader has to know of the rows and pairs, one line each.
    """

    name: str
    rows: int
    zero_rows: int
    dim: int
    metrics: dict[str, Estimate]
    uniformity: UniformityReport
    classes: list[str]
    spectrum: Tensor
    sample: Tensor
    sample_classes: Tensor
    distances: Tensor | None
    other: Geometry | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Summary:
    """What is kept of features that have streamed by.

    Attributes:
        name: The features' name.
        zero_rows: How many of them are zero.
        dim: Their dimension.
        classes: The labels, in the order of their numbers.
        distances: As in :class:`Geometry`.
        metrics: Every metric that can be measured.
        grouped: Their states, by groups of rows.
    """

    name: str
    zero_rows: int
    dim: int
    classes: list[str]
    distances: Tensor | None
    metrics: dict[str, GeometryMetric]
    grouped: GroupedMetrics


def measure(
    features: Array,
    positives: Array | None,
    labels: Array | None,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Geometry:
    """Measure features in one pass, in O(16 d^2 + max_samples d) memory; see :func:`summarise`."""
    return geometry_of(summarise(features, positives, labels, options, progress), options)


def summarise(
    features: Array,
    positives: Array | None,
    labels: Array | None,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Summary:
    """Read features once.

    Args:
        features: The embeddings.
        positives: The other view of each row, for alignment and LiDAR.
        labels: The class of each row, for tolerance and the uniformity of each class.
        options: How to measure.
        progress: Called with the number of rows done.

    Raises:
        CommandError: If a file is damaged, rows do not match, or values are NaN or infinite.
    """
    (dim,) = features.shape
    if positives is not None:
        check_dimensions(features, positives)
    for other in (positives, labels):
        if other is not None and None not in (other.rows, features.rows):
            check_rows(features, features.rows, other, other.rows)
    classes = classes_of(labels) if labels is not None else []
    metrics = _chosen_metrics(dim, len(classes), positives is not None, options)
    grouped = GroupedMetrics(metrics, GROUPS if options.intervals else 1)
    number = {label: place for place, label in enumerate(classes)}
    zero_rows = 0
    distances = None if positives is None else torch.zeros(DISTANCE_BINS)
    for chunk, other_chunk, label_chunk in aligned_chunks(features, positives, labels):
        x = tensor_of(features, chunk, grouped.rows, options.device)
        y = numbers = None
        if positives is not None and other_chunk is not None and distances is not None:
            y = tensor_of(positives, other_chunk, grouped.rows, options.device)
            dtype = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(dtype), y.to(dtype)
            distances += count_distances(distances_of(x, y, options))
        if label_chunk is not None:
            numbers = torch.tensor([number[label] for label in label_chunk.astype(str).tolist()])
            numbers = numbers.to(x.device)
        zero_rows += int((largest_entries(x) == 0).sum())
        grouped.update(x, y, numbers)
        progress(grouped.rows)
    if grouped.rows < 2:
        raise CommandError(f"{features.name}: has {grouped.rows} row, but a pair takes two")
    return Summary(features.name, zero_rows, dim, classes, distances, metrics, grouped)


def geometry_of(summary: Summary, options: Options) -> Geometry:
    """Every metric of what was read.

    Raises:
        CommandError: If rows that are not normalised are too long for their uniformity.
    """
    grouped, metrics = summary.grouped, summary.metrics
    found = grouped.compute()
    uniformity, rank = metrics["uniformity"], metrics["rankme"]
    assert isinstance(uniformity, Uniformity) and uniformity.last_report is not None
    sample, moments = grouped.whole(uniformity), grouped.whole(rank)
    if not options.normalize:
        value = found["uniformity"].value
        _check_rounding(summary.name, sample["features"], value, options.t)
    return Geometry(
        summary.name,
        grouped.rows,
        summary.zero_rows,
        summary.dim,
        {
            name: _estimate(metric, found[name], grouped.rows, summary.dim, options)
            for name, metric in metrics.items()
            if name in found
        },
        uniformity.last_report,
        summary.classes,
        (moments.covariance_spectrum * moments.scale**2).detach().cpu(),
        sample["features"][:SHOWN_SAMPLE].cpu(),
        sample["labels"][:SHOWN_SAMPLE].cpu(),
        summary.distances,
    )


def _check_rounding(name: str, x: Tensor, uniformity: float, t: float) -> None:
    """Refuse rows so far apart that rounding of the exponents, t |x|^2, decides the uniformity."""
    furthest = float((x - x.mean(dim=0)).double().square().sum(dim=1).amax())
    error = t * furthest * torch.finfo(x.dtype).eps
    if not math.isfinite(uniformity):
        return  # it is left out, with its reason
    if not error < LARGEST_ROUNDING * max(1.0, abs(uniformity)):
        raise CommandError(
            f"{name}: rows are up to {furthest**0.5:.2g} from their mean, so that rounding may "
            f"move their uniformity by {error:.2g}; scale them, leave out --no-normalize, give a "
            f"smaller --t{'' if x.dtype == torch.float64 else ', or save them in float64'}"
        )


def _chosen_metrics(
    dim: int, classes: int, paired: bool, options: Options
) -> dict[str, GeometryMetric]:
    """Every metric, in all its variants, for which there is what it takes.

    Raises:
        CommandError: If the options ask for what such features do not have.
    """
    groups = GROUPS if options.intervals else 1
    if groups * classes * dim * 8 > MOST_BYTES_OF_CLASS_SUMS:
        raise CommandError(f"{classes} classes are too many to measure; are these labels?")
    given = {"alpha", "t", "normalize", "max_samples"}
    settings = {name: getattr(options, name) for name in given}
    if options.fit_range is not None:
        try:
            settings["fit_range"] = check_fit_range(options.fit_range, dim)
        except ValueError as error:
            raise CommandError(str(error)) from error
    if classes:
        settings["num_classes"] = classes
    there = {"x", *(("y", "views") if paired else ()), *(("labels",) if classes else ())}
    chosen = {
        name + suffix: kind.build(**settings, **variant).to(options.device)
        for name, kind in METRICS.items()
        if there.issuperset(kind.takes) and settings.keys() >= set(kind.required)
        for suffix, variant in kind.variants.items()
    }
    return {name: metric for name, metric in chosen.items() if dim >= metric.least_dim}


def distances_of(x: Tensor, y: Tensor, options: Options) -> Tensor:
    """Euclidean distances of pairs of rows (N, d), on the sphere unless told otherwise."""
    first, second = (directions(x), directions(y)) if options.normalize else (x, y)
    return pair_distances(first, second, 1.0)


def count_distances(lengths: Tensor) -> Tensor:
    """How many distances there are in each of ``DISTANCE_BINS`` bins over [0, 2]."""
    return torch.histc(lengths.float().cpu(), DISTANCE_BINS, 0, 2)


def _estimate(
    metric: GeometryMetric, found: Jackknifed, rows: int, dim: int, options: Options
) -> Estimate:
    note, missing = metric.describe(rows, dim), ""
    confidence = options.confidence if options.intervals and rows >= FEWEST_ROWS else None
    if confidence and metric.needs_matrix and rows < ROWS_A_DIMENSION * dim:
        confidence, missing = None, f"from {ROWS_A_DIMENSION * dim} rows on"
    if not math.isfinite(found.value) and not metric.may_be_nan:
        confidence, missing = None, missing_value(found.value)
    bounds, slow_bias = metric.bounds(rows, dim), metric.single_eigenvalues
    return Estimate.of(found, bounds, confidence, note, missing, slow_bias=slow_bias)
