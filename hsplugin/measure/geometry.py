"""Every metric of embeddings that stream by, with confidence intervals by the grouped jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsplugin.errors import CommandError
from hsplugin.functional import pair_distances
from hsplugin.measure.readers import Array
from hsplugin.measure.rows import aligned_chunks, check_rows, classes_of, tensor_of
from hsplugin.metrics import METRICS, GeometryMetric, Uniformity, UniformityReport
from hsplugin.metrics.alpha_req import check_fit_range
from hsplugin.metrics.directions import directions, largest_entries
from hsplugin.metrics.jackknife import FOLDS, GroupedMetrics
from hsplugin.metrics.sampling import GROUPS, Jackknifed

try:
    from scipy.stats import t as student_t
except ImportError as error:
    raise ImportError("intervals need scipy: pip install 'hsplugin[measure]'") from error

MOST_BYTES_OF_CLASS_SUMS = 2**31
DISTANCE_BINS = 50
# With fewer rows a dimension, a jackknife cannot take out the bias of a spectrum.
ROWS_A_DIMENSION = 10
# How many times a bias that falls with 1 / sqrt(N) exceeds what is told if it falls with 1 / N.
SLOW_BIAS = 1 + (FOLDS / (FOLDS - 1)) ** 0.5
SHOWN_SAMPLE = 2000

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
class Estimate:
    """A metric of the rows, with a confidence interval for that of their population.

    A metric that is not linear is biased: ranks of few rows are too low. The interval is that of
    the grouped jackknife around the value without its bias of order 1/N, extended to the value
    itself, and cut to the metric's range. So it holds both, and covers the population's metric at
    least as often as the jackknife's own. For metrics of single eigenvalues it is also extended to
    the value without a bias of order 1 / sqrt(N), which they have if eigenvalues are equal. There
    is none without the jackknife, and for spectral metrics of fewer than ten rows a dimension.
    Measured coverage is in examples/docs/intervals.md.

    Attributes:
        value: The metric of all rows.
        interval: Lower and upper end, or None.
        note: How to read the value.
        missing: Why there is no interval, or no value, if other features would give one.
        unbiased: The estimate of the population's metric, the value without its bias; None where
            there is no interval.
    """

    value: float
    interval: tuple[float, float] | None
    note: str
    missing: str = ""
    unbiased: float | None = None


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


def measure(
    features: Array,
    positives: Array | None,
    labels: Array | None,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Geometry:
    """Measure features in one pass, in O(16 d^2 + max_samples d) memory.

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
    if positives is not None and positives.shape != features.shape:
        raise CommandError(
            f"{positives.name}: has {positives.shape[0]} dimensions, but {features.name} has {dim}"
        )
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
            distances += _distance_counts(x, y, options.normalize)
        if label_chunk is not None:
            numbers = torch.tensor([number[label] for label in label_chunk.astype(str).tolist()])
            numbers = numbers.to(x.device)
        zero_rows += int((largest_entries(x) == 0).sum())
        grouped.update(x, y, numbers)
        progress(grouped.rows)
    rows = grouped.rows
    if rows < 2:
        raise CommandError(f"{features.name}: has {rows} row, but a pair takes two")
    found = grouped.compute()
    uniformity, rank = metrics["uniformity"], metrics["rankme"]
    assert isinstance(uniformity, Uniformity) and uniformity.last_report is not None
    sample, moments = grouped.whole(uniformity), grouped.whole(rank)
    return Geometry(
        features.name,
        rows,
        zero_rows,
        dim,
        {
            name: _estimate(metric, found[name], rows, dim, options)
            for name, metric in metrics.items()
            if name in found
        },
        uniformity.last_report,
        classes,
        (moments.covariance_spectrum * moments.scale**2).detach().cpu(),
        sample["features"][:SHOWN_SAMPLE].cpu(),
        sample["labels"][:SHOWN_SAMPLE].cpu(),
        distances,
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


def _distance_counts(x: Tensor, y: Tensor, normalize: bool) -> Tensor:
    first, second = (directions(x), directions(y)) if normalize else (x, y)
    lengths = pair_distances(first, second, 1.0).float().cpu()
    return torch.histc(lengths, DISTANCE_BINS, 0, 2)


def _estimate(
    metric: GeometryMetric, found: Jackknifed, rows: int, dim: int, options: Options
) -> Estimate:
    note = metric.describe(dim)
    if not math.isfinite(found.value) and not metric.may_be_nan:
        return Estimate(math.nan, None, note, "features are too large for it")
    if not options.intervals:
        return Estimate(found.value, None, note)
    if metric.needs_matrix and rows < ROWS_A_DIMENSION * dim:
        return Estimate(found.value, None, note, f"from {ROWS_A_DIMENSION * dim} rows on")
    if rows < 4 or not (math.isfinite(found.unbiased) and math.isfinite(found.error)):
        return Estimate(found.value, None, note)
    half = float(student_t.isf((1 - options.confidence) / 2, found.groups - 1)) * found.error
    least, most = metric.bounds(rows, dim)
    bias = found.value - found.unbiased
    centres = [found.unbiased]
    if metric.single_eigenvalues:
        centres.append(found.value - bias * SLOW_BIAS)
    ends = [centre + end for centre in centres for end in (-half, half)]
    unbiased, low, high = (
        min(max(estimate, least), most) for estimate in (found.unbiased, min(ends), max(ends))
    )
    if abs(bias) > half:
        note += f"; {unbiased:.4f} without the bias of few rows"
    low, high = min(low, found.value), max(high, found.value)
    return Estimate(found.value, (low, high), note, unbiased=unbiased)
