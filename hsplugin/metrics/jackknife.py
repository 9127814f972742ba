"""Metrics of streamed rows, with bias and standard error by a grouped jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

from hsplugin.metrics.base import GeometryMetric, States
from hsplugin.metrics.inputs import select_inputs
from hsplugin.metrics.packing import change_of_moments, merge_moments
from hsplugin.metrics.sampling import GROUPS, Jackknifed, infinitesimal_jackknife, row_keys

# Folds of groups that are left out in turn to tell the bias.
FOLDS = 4
# By the reduction of a state: its derivative by the weight of a part of the rows, from the state of
# all rows and that of the part.
_BY_WEIGHT: Mapping[Any, Callable[[Tensor, Tensor], Tensor]] = {
    dim_zero_sum: lambda whole, part: part.to(whole.dtype),
    merge_moments: change_of_moments,
}


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
        self._whole: dict[tuple[Any, ...], tuple[States, Any]] = {}

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
        """Every metric that has a value, of all rows, with its jackknife estimate.

        The value is not finite where ``compute`` of the metric raises OverflowError.
        """
        found: dict[str, Jackknifed] = {}
        for family, all_members in self._families.items():
            members = {}
            for name, metric in all_members.items():
                if self.rows < metric.least_rows:
                    found[name] = Jackknifed.of_one(metric._undefined())
                else:
                    members[name] = metric
            if not members:
                continue
            first = next(iter(members.values()))
            states, shared = self._whole_of(first)
            estimates = first._jackknife(states, self._parts[family], members)
            if estimates is None:
                estimates = _estimates(states, shared, self._parts[family], members)
            found.update(estimates)
        return found

    def whole(self, metric: GeometryMetric) -> Any:
        """What the metric is read off, for all rows: moments, or states."""
        return self._whole_of(metric)[1]

    def states(self, metric: GeometryMetric) -> list[States]:
        """The states of each group, from which a statistic of several sets of rows is made."""
        return [part._states() for part in self._parts[metric._family()]]

    def _whole_of(self, metric: GeometryMetric) -> tuple[States, Any]:
        family = metric._family()
        if family not in self._whole:
            states = metric._merge(self.states(metric))
            if self.groups > 1:
                states = {
                    name: state.double().requires_grad_()
                    if metric._reductions[name] in _BY_WEIGHT
                    else state
                    for name, state in states.items()
                }
            self._whole[family] = states, metric._shared(states)
        return self._whole[family]

    def _deal(self, rows: int, device: torch.device) -> list[Tensor]:
        """Each group's places among the next rows: one in every block of rows, at random."""
        blocks = math.ceil(rows / self.groups)
        first = torch.tensor(self.rows, device=device)
        order = row_keys(1, 0, first, blocks * self.groups).view(blocks, -1).argsort(dim=1)
        places = order + self.groups * torch.arange(blocks, device=device)[:, None]
        return [column[column < rows] for column in places.T]


def _estimates(
    whole: States,
    shared: Any,
    parts: Sequence[GeometryMetric],
    family: Mapping[str, GeometryMetric],
) -> dict[str, Jackknifed]:
    """Each metric of a family that has a value, by the infinitesimal jackknife.

    Args:
        whole: The states of all rows; leaves of a graph if there are several groups.
        shared: What the metrics read their values off.
        parts: Metrics that have seen one group each.
        family: The metrics by name.
    """
    seen = [part for part in parts if int(part.rows)]
    values = _values(family, shared)
    if len(seen) < 2:
        return {name: Jackknifed.of_one(metric) for name, metric in values.items()}
    leaves = {name: state for name, state in whole.items() if state.requires_grad}
    by_weight: dict[str, list[Tensor]] = {name: [] for name in values}
    slopes = {name: _slopes(value, list(leaves.values())) for name, value in values.items()}
    for part in seen:
        changes = [
            _BY_WEIGHT[part._reductions[name]](state.detach(), part._states()[name]).flatten()
            for name, state in leaves.items()
        ]
        for name, of_states in slopes.items():
            along = [s @ c for s, c in zip(of_states, changes, strict=True) if s is not None]
            by_weight[name].append(torch.stack(along).sum() if along else torch.tensor(math.nan))
    folds = [seen[first::FOLDS] for first in range(min(FOLDS, len(seen)))]
    without = []
    for left_out in folds:
        kept = [part._states() for fold in folds if fold is not left_out for part in fold]
        without.append(_values(family, seen[0]._shared(seen[0]._merge(kept))))
    rows = torch.tensor([sum(int(part.rows) for part in fold) for fold in folds])
    missing = torch.tensor(math.nan)
    return {
        name: infinitesimal_jackknife(
            value.detach().cpu(),
            torch.stack(by_weight[name]).cpu(),
            torch.stack([found.get(name, missing).cpu() for found in without]),
            rows / rows.sum(),
        )
        for name, value in values.items()
    }


def _values(family: Mapping[str, GeometryMetric], shared: Any) -> dict[str, Tensor]:
    """The metrics that have a value: rows may leave none, such as no two of one class."""
    values = {}
    for name, metric in family.items():
        with suppress(ValueError):
            values[name] = metric._value(shared)
    return values


def _slopes(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Derivatives of a value by states, flattened; None where there is none."""
    if not value.requires_grad:
        return [None] * len(leaves)
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [None if slope is None else slope.flatten() for slope in found]
