"""Uniformity over all rows seen, or over a fair sample of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_integer, check_t
from hsplugin.functional import uniformity_optimum
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.checks import check_labels
from hsplugin.metrics.directions import directions
from hsplugin.metrics.sampling import GROUPS, Jackknifed, jackknife, row_keys, without_each_group
from hsplugin.potential import check_backend, log_mean_potential
from hsplugin.potential.distributed import rank

_NO_LABEL = -1


def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    r"""Log-mean Gaussian potential, :math:`\log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}`.

    Source: Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242. On unit rows it lies in
    [-4t, 0]; less is better, down to :func:`hsplugin.uniformity_optimum`.

    Args:
        features: Unit features, shape (N, d), N >= 2.
        t: Inverse width of the Gaussian, above 0.

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If features is no floating-point tensor.
        ValueError: If the shape is wrong, t is out of range, or a value is NaN or infinite.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """
    return Uniformity(t, normalize=False).of(features)


class UniformityReport(NamedTuple):
    """Uniformity beside what can be attained.

    Attributes:
        uniformity: Log-mean potential over the pairs of the features kept.
        standard_error: Of ``uniformity`` as an estimate of that of all rows seen: 0 if all of them
            are kept, NaN if fewer than four are.
        optimum: The least that any distribution on the sphere of this dimension has,
            :func:`hsplugin.uniformity_optimum`.
        gap: ``uniformity - optimum``. A few rows can lie below what distributions attain.
        rows: How many features were seen.
        kept: How many of them the pairs are from.
        per_class: Uniformity within each class of which two features or more are kept.
    """

    uniformity: float
    standard_error: float
    optimum: float
    gap: float
    rows: int
    kept: int
    per_class: dict[int, float]


class Uniformity(GeometryMetric):
    r"""Uniformity, :math:`\log E\, e^{-t \|f(x) - f(y)\|^2}`; less is better.

    Exact over all features seen up to ``max_samples``. Beyond that it is measured over a sample of
    ``max_samples`` rows in which every row seen, on whichever rank, is equally likely: each row is
    given a pseudo-random number, computed from ``seed``, its rank and its position, and those with
    the least numbers are kept. So samples of ranks can be merged, a resumed metric continues as if
    never interrupted, CPU and GPU agree, and no random state changes. Metrics of one process can be
    merged (``merge_state``, ``Running``) up to ``max_samples`` rows, or with a ``seed`` each.
    :meth:`report` adds the standard error, the attainable optimum and the gap to it, and the
    uniformity of each class. See :func:`hsplugin.metrics.functional.uniformity`.

    ``compute`` takes O(max_samples^2 d) time and returns float32 unless features are float64.

    Args:
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        normalize: Whether to scale features to unit length first.
        seed: Chooses another sample.
        backend: Which engine computes it: "auto", "reference", "tiled" or "triton".
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If t is no number.
        ValueError: If t is out of range, max_samples < 2, or the backend is unknown.

    Example:
        >>> metric = Uniformity(t=2.0)
        >>> metric.update(torch.tensor([[2.0, 0.0]]))
        >>> metric.update(torch.tensor([[-1.0, 0.0]]))
        >>> metric.compute()
        tensor(-8.)
        >>> round(metric.report().optimum, 4)
        -1.575
    """

    name = "uniformity"
    title = "uniformity"
    optional = ("labels",)
    settings = ("t", "max_samples", "normalize")
    each_step = True
    higher_is_better = False
    features: Tensor
    labels: Tensor
    keys: Tensor

    def __init__(
        self,
        t: float = 2.0,
        *,
        max_samples: int = 10_000,
        normalize: bool = True,
        seed: int = 0,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.t = check_t(t)
        self.max_samples = check_integer("max_samples", max_samples, least=2)
        self.normalize = normalize
        self.seed = seed
        self._forbid_merging(max_samples, normalize)
        self.backend = check_backend(backend)
        self.last_report: UniformityReport | None = None
        empty = torch.zeros(0, dtype=torch.int64)
        self.add_state("features", torch.zeros(0, 1), dist_reduce_fx=_join)
        self.add_state("labels", empty, dist_reduce_fx=_join)
        # Below zero, so that the zeros that fill up a shorter sample sort behind all rows.
        self.add_state("keys", empty, dist_reduce_fx=_join)

    def update(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Add features.

        Args:
            features: Shape (N, d), of any floating dtype, N >= 1.
            labels: Integer class labels from 0 on, shape (N,), if classes are to be reported.

        Raises:
            TypeError: If features is no floating-point tensor or labels hold no integers.
            ValueError: If a shape is wrong or d differs from that of earlier calls.
        """
        self._add(features, labels)

    def report(self) -> UniformityReport:
        """Return :meth:`compute`'s value with its error, optimum, gap and classes.

        Under torch.distributed every rank has to call it, as it has to call ``compute``.

        Raises:
            ValueError: As :meth:`compute`.
        """
        self.compute()
        assert self.last_report is not None
        return self.last_report

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From -4t to 0 on the sphere."""
        return -4 * self.t if self.normalize else -math.inf, 0.0

    def collapse(self, value: float, dim: int) -> str:
        """Features within a tenth of the attainable uniformity from all being one point."""
        optimum = uniformity_optimum(dim, self.t)
        if value > 0.1 * optimum:
            return (
                f"uniformity is {value:.3f}, of which 0 is a single point and {optimum:.3f} "
                f"the best possible in {dim} dimensions"
            )
        return ""

    def describe(self, dim: int) -> str:
        """What is attainable, and how many rows it is from if not all."""
        optimum = uniformity_optimum(dim, self.t)
        report = self.last_report
        if report is None:
            return f"attainable {optimum:.4f}"
        sample = f", from a sample of {report.kept}" if report.kept < report.rows else ""
        return f"attainable {optimum:.4f}, gap {report.gap:.4f}{sample}"

    def extras(self) -> dict[str, float]:
        """The gap to the optimum, and the mean uniformity within classes if there are several."""
        report = self.report()
        found = {"gap": report.gap}
        if len(report.per_class) > 1:
            found["within_class"] = sum(report.per_class.values()) / len(report.per_class)
        return found

    def _check(self, features: Tensor, labels: Tensor | None = None, *, min_rows: int = 1) -> None:
        check_features("features", features, min_rows=min_rows)
        if labels is not None:
            check_labels(labels, len(features))

    def _measure(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self._points(features)
        first = self.rows if self._before is None else self._before["rows"]
        keys = row_keys(self.seed, rank(), first, len(x))
        labels = torch.full_like(keys, _NO_LABEL) if labels is None else labels.to(torch.int64)
        return {"features": x, "labels": labels, "keys": keys, **self._count(features)}

    def _evaluate(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return log_mean_potential(self._points(features), self.t, backend=self.backend)

    def _points(self, features: Tensor) -> Tensor:
        x = directions(features)
        return x if self.normalize else features.to(x.dtype)

    def _undefined(self) -> Tensor:
        return self.features.new_full((), math.nan)

    def _reduce_states(self, incoming_state: States) -> None:
        ours, theirs = self.keys, incoming_state["keys"]
        if (
            self._before is None
            and len(ours) + len(theirs) > self.max_samples
            and bool(torch.isin(ours, theirs).any())
        ):
            raise ValueError(
                f"max_samples={self.max_samples} is less than the rows of both metrics, which drew "
                f"the same positions for their samples; give each metric its own seed=, or set "
                f"max_samples to the number of rows"
            )
        super()._reduce_states(incoming_state)

    def _dim(self, states: States) -> int:
        return states["features"].shape[1] if len(states["keys"]) else 0

    def _merge(self, parts: Sequence[States]) -> dict[str, Tensor]:
        dim = max(1, *map(self._dim, parts))
        alike = [
            part if len(part["keys"]) else {**part, "features": part["features"].new_zeros(0, dim)}
            for part in parts
        ]
        return self._least(super()._merge(alike))

    def _least(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        if len(states["keys"]) <= self.max_samples:
            return states
        keys, index = states["keys"].topk(self.max_samples, largest=False, sorted=False)
        sample = {"features": states["features"][index], "labels": states["labels"][index]}
        return {**states, **sample, "keys": keys}

    def _value(self, shared: States) -> Tensor:
        sample = self._least(dict(shared))
        held = sample["keys"] < 0
        x, labels, rows = sample["features"][held], sample["labels"][held], int(shared["rows"])
        if len(x) in (rows, 2, 3):
            value = log_mean_potential(x, self.t, backend=self.backend)
            error = 0.0 if len(x) == rows else math.nan
        else:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            groups = order.to(x.device).tensor_split(min(GROUPS, len(x) // 2))
            value, without = without_each_group(
                [x[group] for group in groups], self.t, self.backend
            )
            error = _sampling_error(value, without, len(x), rows)
        self.last_report = self._reported(x, labels, rows, float(value), error)
        return value.to(x.dtype)

    def _reported(
        self, x: Tensor, labels: Tensor, rows: int, value: float, error: float
    ) -> UniformityReport:
        optimum = uniformity_optimum(x.shape[1], self.t)
        per_class = {}
        for label in torch.unique(labels[labels >= 0]).tolist():
            members = x[labels == label]
            if len(members) > 1:
                per_class[label] = float(log_mean_potential(members, self.t, backend=self.backend))
        return UniformityReport(value, error, optimum, value - optimum, rows, len(x), per_class)

    def _split(self, groups: int) -> list[GeometryMetric]:
        """Copies that draw independently and together keep ``max_samples`` rows or a few more."""
        copies: list[GeometryMetric] = []
        for group in range(groups):
            part = copy.deepcopy(self)
            part.seed = self.seed + (group << 32)
            part.max_samples = -(-self.max_samples // groups)
            copies.append(part)
        return copies

    def _jackknife(
        self, whole: States, parts: Sequence[GeometryMetric], family: Mapping[str, GeometryMetric]
    ) -> dict[str, Jackknifed]:
        """The plain jackknife: sums over pairs within and between groups tell it without each."""
        ((name, metric),) = family.items()
        assert isinstance(metric, Uniformity)
        states = [state for part in parts if len((state := part._states())["keys"])]
        keys = torch.cat([state["keys"] for state in states])
        if len(keys) > metric.max_samples:
            limit = keys.kthvalue(metric.max_samples).values
            held = [state["keys"] <= limit for state in states]
            states = [
                {**state, **{name: state[name][own] for name in ("features", "labels", "keys")}}
                for state, own in zip(states, held, strict=True)
                if own.any()
            ]
        value, without = without_each_group(
            [state["features"] for state in states], metric.t, metric.backend
        )
        x, labels, rows = whole["features"], whole["labels"], sum(int(part.rows) for part in parts)
        error = _sampling_error(value, without, len(x), rows)
        metric.last_report = metric._reported(x, labels, rows, float(value), error)
        return {name: jackknife(value, without)}


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _sampling_error(value: Tensor, without: Tensor, kept: int, rows: int) -> float:
    """Standard error of a sample of ``kept`` rows as an estimate for all ``rows``."""
    if kept == rows:
        return 0.0
    return jackknife(value, without).error * (1 - kept / rows) ** 0.5
