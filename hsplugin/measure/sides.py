"""Two sides, such as images and texts or users and items: each alone, and across them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hsplugin.measure.estimates import Estimate, missing_value
from hsplugin.measure.geometry import (
    FEWEST_ROWS,
    Geometry,
    Options,
    Progress,
    Summary,
    geometry_of,
    summarise,
)
from hsplugin.measure.listed import Kept, PairList, add_listed
from hsplugin.measure.pairs import Pairs, with_pairs
from hsplugin.measure.rows import check_dimensions, tensor_of, together
from hsplugin.metrics.moments import Moments
from hsplugin.metrics.sampling import jackknife
from hsplugin.potential import log_mean_potential
from hsplugin.readers import Array

MOST_AT_ONCE = 256


def measure_sides(
    features: Array,
    other: Array,
    pairs: PairList | bool,
    labels: Array | None,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Geometry:
    r"""Measure two sides, their alignment, and what lies between them.

    ``uniformity_across`` is :math:`\log \mathrm{mean}_{i,j}\, e^{-t \|x_i - y_j\|^2}` over all
    pairs of a row of one side and one of the other, but for i = j if row i belongs to row i; of
    large sides over those of samples of both. ``modality_gap`` is the distance of the means of
    both sides' unit rows, from 0 to 2; source: Liang et al., "Mind the Gap", NeurIPS 2022,
    https://arxiv.org/abs/2203.02053.

    Args:
        features: One side.
        other: The other side, of the same dimension.
        pairs: Which rows belong together: those listed; True for row i with row i, if both sides
            have as many; False for none.
        labels: Class of each row of the first side.
        options: How to measure.
        progress: Called with the number of rows done.

    Raises:
        CommandError: If a file is damaged, the sides differ in dimension, or a pair names no row.
    """
    check_dimensions(features, other)
    kept = Kept(features), Kept(other)
    listed = pairs if isinstance(pairs, PairList) else None
    x, y = (
        summarise(side.stream() if listed else side.array, None, own, options, progress)
        for side, own in zip(kept, (labels, None), strict=True)
    )
    geometry = replace(geometry_of(x, options), other=geometry_of(y, options))
    together = pairs is True and x.grouped.rows == y.grouped.rows
    metrics = {**geometry.metrics, **_between(x, y, together, options)}
    geometry = replace(geometry, metrics=metrics)
    found = Pairs(options, sides=2)
    if listed is not None:
        add_listed(found, listed, kept[0].rows(), kept[1].rows())
        return with_pairs(geometry, found)
    if together:
        _add_rows(found, features, other)
        remark = "row i of one side belongs to row i of the other; --no-pairs if they do not"
        return replace(with_pairs(geometry, found), remarks=(remark,))
    if not pairs:
        return geometry
    remark = (
        f"no alignment, as there are {x.grouped.rows} and {y.grouped.rows} rows; --pairs lists "
        f"which belong together"
    )
    return replace(geometry, remarks=(remark,))


def _add_rows(pairs: Pairs, features: Array, other: Array) -> None:
    done = 0
    for chunks in together(features, other):
        x, y = (
            tensor_of(side, chunk, done, pairs.options.device)
            for side, chunk in zip((features, other), chunks, strict=True)
        )
        dtype = torch.promote_types(x.dtype, y.dtype)
        rows = torch.arange(done, done + len(x)).numpy()
        pairs.add(rows, rows, x.to(dtype), y.to(dtype))
        done += len(x)


def _between(x: Summary, y: Summary, together: bool, options: Options) -> dict[str, Estimate]:
    """What lies between two sides; both give up the same group of rows at a time."""
    samples = _samples(x), _samples(y)
    means = _means(x), _means(y)
    log_sums, pairs = _potentials(*samples, options.t, together)
    # A small sample for uniformity need not have rows of every group.
    sampled = (pairs.sum(0) + pairs.sum(1)) > 0
    seen = (means[0][0] + means[1][0]) > 0

    def across(kept: Tensor) -> Tensor:
        return log_sums[kept][:, kept].flatten().logsumexp(0) - pairs[kept][:, kept].sum().log()

    def gap(kept: Tensor) -> Tensor:
        centres = [(rows[kept] @ mean[kept]) / rows[kept].sum() for rows, mean in means]
        return torch.linalg.vector_norm(centres[0] - centres[1])

    uniformity = x.metrics["uniformity"]
    note = f"over {int(pairs.sum())} pairs"
    most = 2.0 if options.normalize else math.inf
    found = {
        "uniformity_across": (across, sampled, uniformity.bounds(x.grouped.rows, x.dim), note),
        "modality_gap": (gap, seen, (0.0, most), "0 if both sides have one mean"),
    }
    rows = min(x.grouped.rows, y.grouped.rows)
    confidence = options.confidence if options.intervals and rows >= FEWEST_ROWS else None
    estimates = {}
    for name, (statistic, there, bounds, about) in found.items():
        alone = torch.eye(len(there), dtype=torch.bool)[there]
        without = torch.stack([statistic(there & ~group) for group in alone])
        spread = jackknife(statistic(there), without)
        missing = missing_value(spread.value)
        estimates[name] = Estimate.of(spread, bounds, confidence, about, missing)
    return estimates


def _samples(side: Summary) -> list[Tensor]:
    """The rows of each group that uniformity is measured over, in one order for both sides."""
    uniformity = side.metrics["uniformity"]
    last = side.grouped.whole(uniformity)["keys"].max()
    samples = []
    for state in side.grouped.states(uniformity):
        keys, order = state["keys"].sort()
        samples.append(state["features"][order[keys <= last]])
    return samples


def _means(side: Summary) -> tuple[Tensor, Tensor]:
    """How many rows each group has, shape (G,), and their means, shape (G, d)."""
    states = side.grouped.states(side.metrics["wasserstein_uniformity"])
    packed = [state["moments"] for state in states]
    rows = torch.stack([moments[0, 0] for moments in packed])
    known = [Moments.unpack(moments) if len(moments) > 1 else None for moments in packed]
    means = [rows.new_zeros(side.dim) if m is None else m.mean * m.scale for m in known]
    return rows.cpu(), torch.stack(means).cpu()


def _potentials(
    xs: list[Tensor], ys: list[Tensor], t: float, together: bool
) -> tuple[Tensor, Tensor]:
    """Of each group of one side with each of the other: log-sum of the potential, and pairs."""
    log_sums = torch.full((len(xs), len(ys)), -math.inf, dtype=torch.float64)
    pairs = torch.tensor([[len(x) * len(y) for y in ys] for x in xs], dtype=torch.float64)
    if together:
        pairs -= torch.diag(torch.tensor([float(len(x)) for x in xs]))
    for g, h in pairs.nonzero().tolist():
        dtype = torch.promote_types(xs[g].dtype, ys[h].dtype)
        log_sum = _log_sum_of_others if together and g == h else _log_sum
        log_sums[g, h] = log_sum(xs[g].to(dtype), ys[h].to(dtype), t)
    return log_sums, pairs


def _log_sum(x: Tensor, y: Tensor, t: float) -> Tensor:
    log_mean = log_mean_potential(x, t, queue=y, intra_batch=False)
    return log_mean.double().cpu() + math.log(len(x) * len(y))


def _log_sum_of_others(x: Tensor, y: Tensor, t: float) -> Tensor:
    """The same without the pairs of row i with row i, which subtracting could not take out."""
    if len(x) <= MOST_AT_ONCE:
        squared = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return (-t * squared.square()).fill_diagonal_(-math.inf).flatten().logsumexp(0).cpu()
    half = len(x) // 2
    parts = [
        _log_sum_of_others(x[:half], y[:half], t),
        _log_sum_of_others(x[half:], y[half:], t),
        _log_sum(x[:half], y[half:], t),
        _log_sum(x[half:], y[:half], t),
    ]
    return torch.stack(parts).logsumexp(0)
