"""Metrics of streamed rows, with bias and standard error by a grouped jackknife."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.inputs import select_inputs
from hsplugin.metrics.sampling import GROUPS, jackknife, row_keys


class Jackknifed(NamedTuple):
    """A metric of all rows, and what the groups tell about its population.

    Attributes:
        value: The metric of all rows.
        unbiased: The value with its bias of order 1/N taken out; NaN where there is no estimate.
        error: Standard error of ``unbiased``; NaN where there is no estimate.
        groups: How many groups the estimate rests on.
        without: The metric without each group, shape (groups,).
    """

    value: float
    unbiased: float
    error: float
    groups: int
    without: Tensor

    @classmethod
    def of(cls, value: Tensor, without: Tensor) -> Jackknifed:
        """The estimate from a metric of all rows, and of those without each group."""
        groups = len(without)
        if groups < 2:
            return cls(float(value), math.nan, math.nan, groups, without)
        unbiased, error = jackknife(value, without)
        return cls(float(value), float(unbiased), float(error), groups, without)

    def minus(self, other: Jackknifed) -> Jackknifed:
        """The difference to a metric of other features, with the same rows in each group.

        If they are features of other samples, the error is right too: groups are dealt at random.
        """
        value = torch.tensor(self.value - other.value, dtype=torch.float64)
        if self.groups != other.groups:
            return Jackknifed.of(value, value.expand(1))
        return Jackknifed.of(value, self.without - other.without.to(self.without.device))


class GroupedMetrics:
    """Some metrics over rows that are assigned to groups at random, by a fixed rule.

    Metrics of one family, such as those over moments, share their states; a spectrum is computed
    once for all of them.

    Args:
        metrics: The metrics by the names under which they are returned.
        groups: How many groups; 1 for values without estimates.
    """

    def __init__(self, metrics: Mapping[str, GeometryMetric], groups: int = GROUPS) -> None:
        self.rows = 0
        self.groups = groups
        self._families: dict[tuple[Any, ...], dict[str, GeometryMetric]] = {}
        for name, metric in metrics.items():
            self._families.setdefault(metric._family(), {})[name] = metric
        self._parts = {
            family: next(iter(members.values()))._split(groups)
            for family, members in self._families.items()
        }
        self._whole: dict[tuple[Any, ...], Any] = {}

    def update(self, x: Tensor, y: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Add rows; in all calls but the last a multiple of the number of groups.

        Args:
            x: Features, shape (N, d).
            y: The other view of each row, shape (N, d), if a metric takes pairs.
            labels: The class of each row, shape (N,), if a metric takes them.

        Raises:
            ValueError: As the metrics' own ``update``.
        """
        for group, mine in enumerate(self._deal(len(x), x.device)):
            if not len(mine):
                continue
            own = [None if tensor is None else tensor[mine] for tensor in (x, y, labels)]
            for parts in self._parts.values():
                metric = parts[group]
                metric.update(*select_inputs(metric.takes, metric.optional, *own))  # type: ignore[arg-type]
        self.rows += len(x)
        self._whole.clear()

    def compute(self) -> dict[str, Jackknifed]:
        """Every metric that has a value, of all rows, with its jackknife estimate."""
        return {
            name: Jackknifed.of(value.double(), without.double())
            for family, members in self._families.items()
            for name, (value, without) in self._leave_one_out(family, members).items()
        }

    def whole(self, metric: GeometryMetric) -> Any:
        """What the metric is read off, for all rows: moments, or states."""
        family = metric._family()
        if family not in self._whole:
            self._whole[family] = metric._shared(metric._merge(self.states(metric)))
        return self._whole[family]

    def states(self, metric: GeometryMetric) -> list[States]:
        """The states of each group, from which a statistic of several sets of rows is made."""
        return [part._states() for part in self._parts[metric._family()]]

    def _leave_one_out(
        self, family: tuple[Any, ...], members: Mapping[str, GeometryMetric]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        first = next(iter(members.values()))
        return first._leave_one_out(self.whole(first), self._parts[family], members)

    def _deal(self, rows: int, device: torch.device) -> list[Tensor]:
        """Each group's places among the next rows: one in every block of rows, at random."""
        blocks = math.ceil(rows / self.groups)
        first = torch.tensor(self.rows, device=device)
        order = row_keys(1, 0, first, blocks * self.groups).view(blocks, -1).argsort(dim=1)
        places = order + self.groups * torch.arange(blocks, device=device)[:, None]
        return [column[column < rows] for column in places.T]
