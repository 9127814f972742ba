"""Metrics over pairs of rows: of all rows seen, or of a fair sample of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_integer
from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.checks import check_labels
from hsplugin.metrics.directions import directions
from hsplugin.metrics.inputs import TakesFeatures
from hsplugin.metrics.sampling import Jackknifed, row_keys
from hsplugin.potential.distributed import rank

_NO_LABEL = -1


class SampledMetric(GeometryMetric):
    """Base of the metrics over pairs, which keep at most ``max_samples`` rows.

    Beyond that every row seen, on whichever rank, is equally likely to be kept: each row is given a
    pseudo-random number, computed from ``seed``, its rank and its position, and those with the
    least numbers are kept. So samples of ranks can be merged, a resumed metric continues as if
    never interrupted, CPU and GPU agree, and no random state changes. Metrics of one process can be
    merged (``merge_state``, ``Running``) up to ``max_samples`` rows, or with a ``seed`` each.

    A subclass reads its value off the rows in ``_of_rows``.

    Args:
        max_samples: How many rows are kept, at least 2 (on each rank, and after merging).
        normalize: Whether to scale features to unit length first.
        seed: Chooses another sample.
        kwargs: Of :class:`torchmetrics.Metric`.

    Attributes:
        most_products: Fewer rows are kept of features so wide that the products of all pairs take
            more multiplications than this.

    Raises:
        TypeError: If max_samples is no integer.
        ValueError: If max_samples < 2.
    """

    most_products: ClassVar[float] = math.inf
    features: Tensor
    labels: Tensor
    keys: Tensor

    def __init__(
        self, *, max_samples: int = 10_000, normalize: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.max_samples = check_integer("max_samples", max_samples, least=2)
        self.normalize = normalize
        self.seed = seed
        self._forbid_merging(max_samples, normalize, self.most_products)
        empty = torch.zeros(0, dtype=torch.int64)
        self.add_state("features", torch.zeros(0, 1), dist_reduce_fx=_join)
        self.add_state("labels", empty, dist_reduce_fx=_join)
        # Below zero, so that the zeros that fill up a shorter sample sort behind all rows.
        self.add_state("keys", empty, dist_reduce_fx=_join)

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        """The value of rows (N, d) with labels (N,), -1 where there is none."""
        raise NotImplementedError

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
        if labels is None:
            labels = torch.full((len(features),), _NO_LABEL, device=features.device)
        return self._of_rows(self._points(features), labels)

    def _value(self, shared: States) -> Tensor:
        return self._of_rows(*self._sample(shared))

    def _points(self, features: Tensor) -> Tensor:
        x = directions(features)
        return x if self.normalize else features.to(x.dtype)

    def _sample(self, states: States) -> tuple[Tensor, Tensor]:
        """The rows kept and their labels."""
        sample = self._least(dict(states))
        held = sample["keys"] < 0
        return sample["features"][held], sample["labels"][held]

    def _undefined(self) -> Tensor:
        return self.features.new_full((), math.nan)

    def _reduce_states(self, incoming_state: States) -> None:
        ours, theirs = self.keys, incoming_state["keys"]
        if (
            self._before is None
            and len(ours) + len(theirs) > self._most(max(self._dim(self._states()), 1))
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

    def _most(self, dim: int) -> int:
        """How many rows of this dimension are kept."""
        if math.isinf(self.most_products):
            return self.max_samples
        return max(2, min(self.max_samples, int((self.most_products / dim) ** 0.5)))

    def _least(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        most = self._most(states["features"].shape[1])
        if len(states["keys"]) <= most:
            return states
        keys, index = states["keys"].topk(most, largest=False, sorted=False)
        sample = {"features": states["features"][index], "labels": states["labels"][index]}
        return {**states, **sample, "keys": keys}

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
        """The values alone: leaving out groups would take as long again for each."""
        return {name: Jackknifed.of_one(metric._value(whole)) for name, metric in family.items()}


class LabelledSample(SampledMetric):
    """Base of those that take labels besides."""

    takes = ("x", "labels")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add labelled features.

        Args:
            features: Shape (N, d), of any floating dtype, N >= 1.
            labels: Integer class labels, shape (N,); rows with a negative one have none.

        Raises:
            TypeError: If features is no floating-point tensor or labels hold no integers.
            ValueError: If a shape is wrong, labels are missing, or d differs from earlier calls.
        """
        self._add(features, labels)

    def _check(self, features: Tensor, labels: Tensor | None = None, *, min_rows: int = 1) -> None:
        super()._check(features, min_rows=min_rows)
        check_labels(labels, len(features))


class WideRows(TakesFeatures, SampledMetric):
    """A fair sample of wide features, from which metrics over moments take their Gram matrix.

    ``compute`` returns the rows. They are so few that the Gram matrices and spectra of all metrics
    over moments take less than five seconds on two cores: 2048 up to d = 8192, 724 at d = 65536.
    """

    name = "rows"
    title = "rows"
    most_products = 2.0**35

    def __init__(self, *, max_samples: int = 2048, **kwargs: Any) -> None:
        super().__init__(max_samples=min(max_samples, 2048), normalize=False, **kwargs)

    def _of_rows(self, x: Tensor, labels: Tensor) -> Tensor:
        return x

    def _representable(self, value: Tensor) -> Tensor:
        return value


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))
