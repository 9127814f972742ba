"""Uniformity over everything seen, or over a fair sample of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_integer, check_t
from hsplugin.functional import uniformity_optimum, unit_rows
from hsplugin.metrics.base import GeometryMetric
from hsplugin.metrics.checks import check_labels
from hsplugin.metrics.jackknife import jackknife_uniformity
from hsplugin.potential import check_backend, log_mean_potential
from hsplugin.potential.distributed import rank

_NO_LABEL = -1
_GOLDEN = 0x9E3779B97F4A7C15


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
    the least numbers are kept. So a sample can be merged over ranks, goes on after a resume as if
    it had not been interrupted, is the same on CPU and GPU, and touches no random state.
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
        self._set_apart(max_samples, normalize)
        self.backend = check_backend(backend)
        self._report: UniformityReport | None = None
        empty = torch.zeros(0, dtype=torch.int64)
        self.add_state("features", torch.zeros(0, 1), dist_reduce_fx=_join_ranks)
        self.add_state("labels", empty, dist_reduce_fx=_join_ranks)
        # Below zero, so that the zeros that fill up a shorter reservoir sort behind all rows.
        self.add_state("keys", empty, dist_reduce_fx=_join_ranks)

    def update(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Add features.

        Args:
            features: Shape (N, d), of any floating dtype.
            labels: Integer class labels from 0 on, shape (N,), if classes are to be reported.

        Raises:
            TypeError: If features is no floating-point tensor or labels hold no integers.
            ValueError: If a shape is wrong or d differs from that of earlier calls.
        """
        check_features("features", features)
        if labels is not None:
            check_labels(labels, len(features))
        features = features.detach()
        x = unit_rows(features)
        if not self.normalize:
            x = features.to(x.dtype)
        if len(self.features) and self.features.shape[1] != x.shape[1]:
            raise ValueError(
                f"features have dimension {x.shape[1]}, but {self.features.shape[1]} in earlier "
                f"calls; call reset() before measuring another representation"
            )
        keys = row_keys(self.seed, rank(), self.rows, len(x))
        if labels is None:
            labels = torch.full_like(keys, _NO_LABEL)
        self._count(features)
        if len(self.features):
            x = torch.cat([self.features, x])
            labels = torch.cat([self.labels, labels.to(torch.int64)])
            keys = torch.cat([self.keys, keys])
        self.features, self.labels, self.keys = self._least(x, labels.to(torch.int64), keys)

    def _least(self, x: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if len(keys) <= self.max_samples:
            return x, labels, keys
        keys, index = keys.topk(self.max_samples, largest=False, sorted=False)
        return x[index], labels[index], keys

    def compute(self) -> Tensor:
        """Return the uniformity of all features seen, or of the sample kept.

        Raises:
            ValueError: If fewer than two rows were seen, or features were NaN or infinite.
        """
        self._check_seen()
        x, labels, keys = self._least(self.features, self.labels, self.keys)
        x, labels = x[keys < 0], labels[keys < 0]
        rows, kept = int(self.rows), len(x)
        if rows == kept:
            value, error = log_mean_potential(x, self.t, backend=self.backend), 0.0
        elif kept < 4:
            value, error = log_mean_potential(x, self.t, backend=self.backend), float("nan")
        else:
            value, of_population = jackknife_uniformity(x, self.t, backend=self.backend)
            error = float(of_population) * (1 - kept / rows) ** 0.5
        optimum = uniformity_optimum(x.shape[1], self.t)
        per_class = {}
        for label in torch.unique(labels[labels >= 0]).tolist():
            members = x[labels == label]
            if len(members) > 1:
                per_class[label] = float(log_mean_potential(members, self.t, backend=self.backend))
        gap = float(value) - optimum
        self._report = UniformityReport(float(value), error, optimum, gap, rows, kept, per_class)
        return value.to(x.dtype)

    def report(self) -> UniformityReport:
        """Return :meth:`compute`'s value beside its error, optimum, gap and classes.

        Under torch.distributed every rank has to call it, as it has to call ``compute``.

        Raises:
            ValueError: As :meth:`compute`.
        """
        self.compute()
        assert self._report is not None
        return self._report


def _join_ranks(stacked: Tensor) -> Tensor:
    return stacked.flatten(0, 1)


def row_keys(seed: int, rank: int, first: Tensor, count: int) -> Tensor:
    """Numbers in [-2^62, -1] for rows first, first + 1, ...: the splitmix64 hash of their place."""
    place = first + torch.arange(count, device=first.device)
    stream = _mixed(torch.full_like(place, _signed(rank * _GOLDEN + seed)))
    x = _mixed(place * _signed(_GOLDEN) + stream)
    return -((x & (2**62 - 1)) + 1)


def _mixed(x: Tensor) -> Tensor:
    # Stafford's variant 13; torch shifts signed numbers, so the sign is masked off afterwards.
    x = (x ^ (x >> 30 & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (2**33 - 1))


def _signed(x: int) -> int:
    x &= 2**64 - 1
    return x - 2**64 if x >= 2**63 else x
