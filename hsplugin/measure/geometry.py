"""Every metric of embeddings that stream by, with confidence intervals by the grouped jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsplugin.errors import CommandError
from hsplugin.functional import pair_distances, unit_rows
from hsplugin.measure.readers import Array
from hsplugin.measure.rows import check_rows, classes_of, in_step, tensor_of
from hsplugin.metrics import Uniformity, UniformityReport, spectrum
from hsplugin.metrics.functional import tolerance_of
from hsplugin.metrics.jackknife import (
    GROUPS,
    jackknife,
    jackknife_uniformity,
    student_quantile,
)
from hsplugin.metrics.spectrum import Moments, instance_moments, merge_moments, with_features
from hsplugin.metrics.uniformity import row_keys

MOST_BYTES_OF_CLASS_SUMS = 2**31
DISTANCE_BINS = 50
# Of fewer rows a dimension, the bias of a spectrum is no longer what a jackknife can take out.
ROWS_A_DIMENSION = 10
SPECTRAL = {
    "wasserstein_uniformity",
    "rankme",
    "effective_rank",
    "alpha_req",
    "nesum",
    "lidar",
}
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

    The interval lies around the value with its bias taken out, which for ranks and spectra of few
    rows is far from the value. It is None where there is none: without the jackknife, and for
    spectral metrics of fewer than ten rows a dimension. If the spectrum is all but flat, those of
    ``alpha_req`` and ``nesum`` are too narrow, for their bias is not of order 1/N.
    """

    value: float
    interval: tuple[float, float] | None


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
    sums = _Sums(dim, len(classes), positives is not None, options)
    number = {label: place for place, label in enumerate(classes)}
    for chunk, other_chunk, label_chunk in in_step(features, positives, labels):
        x = tensor_of(features, chunk, sums.rows, options.device)
        y = numbers = None
        if positives is not None and other_chunk is not None:
            y = tensor_of(positives, other_chunk, sums.rows, options.device)
            dtype = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(dtype), y.to(dtype)
        if label_chunk is not None:
            numbers = torch.tensor([number[label] for label in label_chunk.astype(str).tolist()])
            numbers = numbers.to(x.device)
        sums.add(x, y, numbers)
        progress(sums.rows)
    if sums.rows < 2:
        raise CommandError(f"{features.name}: has {sums.rows} row, but a pair takes two")
    return sums.geometry(features.name, classes)


class _Sums:
    """Moments and sums of each jackknife group; of the features only a bounded sample."""

    def __init__(self, dim: int, classes: int, paired: bool, options: Options) -> None:
        groups = GROUPS if options.intervals else 1
        if groups * classes * dim * 8 > MOST_BYTES_OF_CLASS_SUMS:
            raise CommandError(f"{classes} classes are too many to measure; are these labels?")
        self.options = options
        self.dim = dim
        self.rows = self.zero_rows = 0
        self.uniformity = Uniformity(
            options.t, max_samples=options.max_samples, normalize=options.normalize
        ).to(options.device)
        self.distances = torch.zeros(DISTANCE_BINS) if paired else None

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=options.device)

        square = (dim + 1, dim + 1)
        self.counts, self.given, self.on_sphere = zeros(), zeros(*square), zeros(*square)
        if paired:
            self.distance_sums = zeros()
            self.instances, self.within = zeros(*square), zeros(dim, dim)
        self.class_sums, self.class_counts = zeros(classes, dim), zeros(classes)
        self.squares = zeros()

    def add(self, x: Tensor, y: Tensor | None, labels: Tensor | None) -> None:
        """Add rows; all calls but the last with a multiple of the number of groups."""
        self.uniformity.update(x, labels)
        self.zero_rows += int((x == 0).all(dim=1).sum())
        on_sphere = unit_rows(x) if self.options.normalize else x
        distances: Tensor | None = None
        if y is not None and self.distances is not None:
            other = unit_rows(y) if self.options.normalize else y
            distances = pair_distances(on_sphere, other, self.options.alpha)
            lengths = distances.pow(1 / self.options.alpha).float().cpu()
            self.distances += torch.histc(lengths, DISTANCE_BINS, 0, 2)
        for group, mine in enumerate(self._deal(len(x))):
            if not len(mine):
                continue
            self.counts[group] += len(mine)
            self.given[group] = with_features(self.given[group], x[mine])
            self.on_sphere[group] = with_features(self.on_sphere[group], on_sphere[mine])
            if y is not None and distances is not None:
                self.distance_sums[group] += distances[mine].sum(dtype=torch.float64)
                means, within = instance_moments(torch.stack([x[mine], y[mine]], dim=1))
                self.instances[group] = with_features(self.instances[group], means)
                self.within[group] += within
            if labels is not None:
                rows = on_sphere[mine].double()
                self.class_sums[group].index_add_(0, labels[mine], rows)
                self.class_counts[group] += torch.bincount(
                    labels[mine], minlength=len(self.class_counts[group])
                )
                self.squares[group] += rows.square().sum()
        self.rows += len(x)

    def _deal(self, rows: int) -> list[Tensor]:
        """Each group's places among the next rows: one in every block of rows, at random."""
        groups = len(self.counts)
        blocks = math.ceil(rows / groups)
        first = torch.tensor(self.rows, device=self.counts.device)
        order = row_keys(1, 0, first, blocks * groups).view(blocks, groups).argsort(dim=1)
        places = order + groups * torch.arange(blocks, device=order.device)[:, None]
        return [column[column < rows] for column in places.T]

    def _scores(self, of: Tensor) -> dict[str, Tensor]:
        """All metrics but uniformity, of the rows of some groups."""
        scores = {}
        given = Moments.unpack(merge_moments(self.given[of]))
        on_sphere = Moments.unpack(merge_moments(self.on_sphere[of]))
        variances = spectrum.covariance_spectrum(given)
        if self.distances is not None:
            scores["alignment"] = self.distance_sums[of].sum() / self.counts[of].sum()
        scores["wasserstein_uniformity"] = spectrum.wasserstein_uniformity(
            on_sphere.mean, spectrum.covariance_spectrum(on_sphere)
        )
        scores["rankme"] = spectrum.entropy_rank(spectrum.singular_values(given), 1e-7)
        scores["effective_rank"] = spectrum.entropy_rank(variances)
        if (fit_range := self._fit_range()) is not None:
            scores["alpha_req"] = spectrum.alpha_req(variances, fit_range)
        scores["nesum"] = spectrum.nesum(variances)
        if self.distances is not None:
            instances = Moments.unpack(merge_moments(self.instances[of]))
            scores["lidar"] = spectrum.lidar(instances, self.within[of].sum(0), 1e-4, 1e-7)
        counts = self.class_counts[of].sum(0)
        if len(counts):
            sums, squares = self.class_sums[of].sum(0), self.squares[of].sum()
            scores["tolerance"] = tolerance_of(sums, counts, squares, conditional=False)
            if (counts > 1).any():
                scores["tolerance_conditional"] = tolerance_of(sums, counts, squares, True)
        return scores

    def _fit_range(self) -> tuple[int, int] | None:
        """The range that was asked for, or the paper's if there are dimensions enough."""
        if self.options.fit_range is None:
            return (10, 100) if self.dim > 10 else None
        try:
            return spectrum.check_fit_range(self.options.fit_range, self.dim)
        except ValueError as error:
            raise CommandError(str(error)) from error

    def geometry(self, name: str, classes: list[str]) -> Geometry:
        """All that was measured."""
        used = self.counts.nonzero().flatten()
        scores = self._scores(used)
        report = self.uniformity.report()
        sample = self.uniformity.features
        metrics = {}
        centres: dict[str, tuple[float, float]] = {}
        if self.options.intervals and self.rows >= 4:
            without = [self._scores(used[used != group]) for group in used]
            for metric in scores:
                # A class may have its only pair within one group.
                values = [part[metric] for part in without if metric in part]
                if len(values) == len(without):
                    unbiased, error = jackknife(scores[metric], torch.stack(values))
                    centres[metric] = float(unbiased), float(error)
            value, error = jackknife_uniformity(sample, self.options.t)
            centres["uniformity"] = float(value), float(error)
        values_of = {metric: float(value) for metric, value in scores.items()}
        values_of["uniformity"] = report.uniformity
        first = ["alignment", "uniformity"]
        for metric in sorted(values_of, key=lambda m: first.index(m) if m in first else 2):
            interval = None
            too_few = metric in SPECTRAL and self.rows < ROWS_A_DIMENSION * self.dim
            if metric in centres and not too_few and all(map(math.isfinite, centres[metric])):
                centre, deviation = centres[metric]
                groups = min(len(used), self.rows // 2)
                half = student_quantile(self.options.confidence, groups - 1) * deviation
                interval = (centre - half, centre + half)
            metrics[metric] = Estimate(values_of[metric], interval)
        given = Moments.unpack(merge_moments(self.given))
        return Geometry(
            name,
            self.rows,
            self.zero_rows,
            self.dim,
            metrics,
            report,
            classes,
            spectrum.covariance_spectrum(given).cpu(),
            sample[:SHOWN_SAMPLE].cpu(),
            self.uniformity.labels[:SHOWN_SAMPLE].cpu(),
            self.distances,
        )
