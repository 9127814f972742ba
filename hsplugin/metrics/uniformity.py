"""Uniformity over all rows seen, or over a fair sample of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsplugin.checks import check_t
from hsplugin.functional import uniformity_optimum
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.sampled import SampledMetric
from hsplugin.metrics.sampling import GROUPS, Jackknifed, jackknife, without_each_group
from hsplugin.potential import check_backend, log_mean_potential


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


class Uniformity(SampledMetric):
    r"""Uniformity, :math:`\log E\, e^{-t \|f(x) - f(y)\|^2}`; less is better.

    Exact over all features seen up to ``max_samples``, beyond that from a fair sample of as many,
    as :class:`hsplugin.metrics.sampled.SampledMetric` draws it. :meth:`report` adds the standard
    error, the attainable optimum and the gap to it, and the uniformity of each class. See
    :func:`hsplugin.metrics.functional.uniformity`.

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
        super().__init__(max_samples=max_samples, normalize=normalize, seed=seed, **kwargs)
        self.t = check_t(t)
        self.backend = check_backend(backend)
        self.last_report: UniformityReport | None = None

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
        """Return ``compute``'s value with its error, optimum, gap and classes.

        Under torch.distributed every rank has to call it, as it has to call ``compute``.

        Raises:
            ValueError: As ``compute``.
        """
        self.compute()
        assert self.last_report is not None
        return self.last_report

    def bounds(self, rows: int, dim: int) -> tuple[float, float]:
        """From -4t to 0 on the sphere."""
        return -4 * self.t if self.normalize else -math.inf, 0.0

    def collapse(self, value: float, rows: int, dim: int) -> str:
        """Features within a tenth of the attainable uniformity from all being one point."""
        optimum = uniformity_optimum(dim, self.t)
        if value > 0.1 * optimum:
            return (
                f"uniformity is {value:.3f}, of which 0 is a single point and {optimum:.3f} "
                f"the best possible in {dim} dimensions"
            )
        return ""

    def describe(self, rows: int, dim: int) -> str:
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

    def _evaluate(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return log_mean_potential(self._points(features), self.t, backend=self.backend)

    def _value(self, shared: States) -> Tensor:
        (x, labels), rows = self._sample(shared), int(shared["rows"])
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


def _sampling_error(value: Tensor, without: Tensor, kept: int, rows: int) -> float:
    """Standard error of a sample of ``kept`` rows as an estimate for all ``rows``."""
    if kept == rows:
        return 0.0
    return jackknife(value, without).error * (1 - kept / rows) ** 0.5
