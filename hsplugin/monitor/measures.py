"""The metrics of one stage: fed with views, computed over all ranks, each on its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hsplugin.metrics.inputs import MissingInputError, select_inputs
from hsplugin.metrics.moments import MomentMetric, values_of_rows
from hsplugin.metrics.sampled import SampledMetric, WideRows
from hsplugin.monitor.samples import most_rows
from hsplugin.monitor.views import Views
from hsplugin.potential.distributed import world_size

if TYPE_CHECKING:
    from torchmetrics import Metric

# The spectrum of a larger d x d matrix takes minutes on a CPU; that of a few rows takes a second.
WIDEST = 2048


def build_metrics(
    metrics: Sequence[str] | Mapping[str, Metric], max_samples: int
) -> dict[str, Metric]:
    """Metrics by their names, or the mapping given.

    Raises:
        TypeError: If metrics is neither names nor a mapping of metrics.
        ValueError: If a name is unknown or there are none.
    """
    from torchmetrics import Metric

    from hsplugin.metrics import METRICS

    known = {name: kind for name, kind in METRICS.items() if not kind.required}
    if isinstance(metrics, str) or not isinstance(metrics, (Mapping, Sequence)):
        raise TypeError(
            "metrics must be a list of names or a mapping from name to torchmetrics.Metric, "
            f"got {type(metrics).__name__}: {metrics!r}"
        )
    if not metrics:
        raise ValueError(f"metrics is empty; choose from {', '.join(known)}")
    if isinstance(metrics, Mapping):
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"metrics[{name!r}] must be a torchmetrics.Metric, got {type(metric).__name__}"
                )
        return dict(metrics)
    for name in metrics:
        if name not in known:
            raise ValueError(
                f"metrics: {name!r} is unknown; choose from {', '.join(known)}, or pass a "
                "mapping such as {'tolerance': hsplugin.metrics.Tolerance(num_classes=10)}"
            )
    return {name: known[name].build(max_samples=max_samples) for name in metrics}


class Measures:
    """Own copies of some metrics; an error in one leaves the others alone.

    Args:
        metrics: Metrics by name; copied.
        quiet: Names of those that are left out silently if there is no second view or no labels.
        wide_rows: Where features have more than 2048 dimensions, read metrics over moments off the
            Gram matrix of a sample of at most so many rows; None to take the moments of all rows.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        quiet: Collection[str] = (),
        wide_rows: int | None = None,
    ) -> None:
        # Any, as ours declare more of themselves than torchmetrics' do.
        self._metrics: dict[str, Any] = {n: copy.deepcopy(metric) for n, metric in metrics.items()}
        self._problems: dict[str, str] = {}
        self._lost = 0
        self._quiet = quiet
        self._rows = None if wide_rows is None else WideRows(max_samples=wide_rows)
        self._dim: int | None = None

    def reset(self) -> None:
        """Forget everything measured."""
        for metric in self._metrics.values():
            metric.reset()
        if self._rows is not None:
            self._rows.reset()
        self._problems.clear()
        self._lost = 0

    def update(self, views: Views) -> None:
        """Feed each metric what it takes of the views, less rows with NaN or infinity."""
        views = self._finite(views)
        if not len(views.x):
            return
        self._dim = views.x.shape[1]
        self._limit_pairs(self._dim)
        wide = self._wide()
        if self._rows is not None and wide:
            try:
                self._rows.to(views.x.device).update(views.x)
            except Exception as error:
                self._note(wide, error)
        for name, metric in self._metrics.items():
            if name in wide:
                continue
            try:
                metric.to(views.x.device).update(*_arguments(metric, views))
            except Exception as error:
                self._note([name], error)

    def _limit_pairs(self, dim: int) -> None:
        """Keep fewer rows of very wide features, so that the end of an epoch takes seconds."""
        for metric in self._metrics.values():
            if self._rows is not None and isinstance(metric, SampledMetric):
                metric.max_samples = most_rows(metric.max_samples, dim)

    def _wide(self) -> dict[str, MomentMetric]:
        """The metrics that are read off the Gram matrix of some rows."""
        if self._rows is None or (self._dim or 0) <= WIDEST:
            return {}
        return {
            n: metric for n, metric in self._metrics.items() if isinstance(metric, MomentMetric)
        }

    def _note(self, names: Collection[str], error: Exception) -> None:
        for name in names:
            if not (isinstance(error, MissingInputError) and name in self._quiet):
                self._problems.setdefault(name, " ".join(str(error).split()))

    def _finite(self, views: Views) -> Views:
        views = _one_precision(views)
        finite = views.finite()
        self._lost += len(views.x) - len(finite.x)
        return finite

    def of_step(self, views: Views) -> dict[str, Tensor]:
        """What is shown of single batches, computed on the device without waiting for it."""
        values = {}
        views = _one_precision(views)
        for name, metric in self._metrics.items():
            if getattr(metric, "each_step", False) and len(views.x) >= metric.least_rows:
                try:
                    values[name] = metric.of(*_arguments(metric, views), finite=False)
                except MissingInputError:
                    continue
        return values

    def compute(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Values over all ranks, and for each metric without one the reason.

        If one rank could not update a metric, no rank computes it; the others would hang.
        """
        wide = self._wide()
        fed: dict[str, Any] = {n: self._rows if n in wide else m for n, m in self._metrics.items()}
        flags = _smallest([int(metric.update_count > 0) for metric in fed.values()], device)
        usable = [name for name, flag in zip(fed, flags, strict=True) if flag]
        values = self._of_wide_rows({name: wide[name] for name in usable if name in wide}, device)
        for name in usable:
            if name in wide:
                continue
            try:
                values.update(_scalars(name, self._metrics[name].to(device)))
            except Exception as error:
                # An earlier error in update is the cause of this one.
                self._note([name], error)
        problems = {name: f"{name} is not measured: {why}" for name, why in self._problems.items()}
        if self._lost:
            problems["rows"] = f"rows with NaN or infinite features are left out: {self._lost}"
        return values, problems

    def _of_wide_rows(
        self, wide: Mapping[str, MomentMetric], device: torch.device
    ) -> dict[str, Tensor]:
        if self._rows is None or not wide:
            return {}
        try:
            rows = self._rows.to(device).compute()
            found = values_of_rows(wide, rows)
        except Exception as error:
            self._note(wide, error)
            return {}
        for metric in wide.values():
            metric.measured_rows = len(rows)
        return found

    def collapse(self, values: Mapping[str, float]) -> str:
        """Why the values show a collapse of the features, or nothing."""
        found = [
            reason
            for name, metric in self._metrics.items()
            if self._dim is not None and name in values and hasattr(metric, "collapse")
            if (reason := metric.collapse(values[name], metric.measured_rows, self._dim))
        ]
        if found and "alignment" in values:
            found.append(f"alignment is {values['alignment']:.4f}")
        return "; ".join(found)


def _one_precision(views: Views) -> Views:
    """Under autocast a predictor's output and its target may differ in precision."""
    return views if views.y is None else Views(views.x, views.y.to(views.x.dtype), views.labels)


def _arguments(metric: Any, views: Views) -> tuple[Tensor, ...]:
    takes, optional = _inputs_of(metric)
    return select_inputs(takes, optional, views.x, views.y, views.labels)


def _inputs_of(metric: Any) -> tuple[Sequence[str], Sequence[str]]:
    """What a metric takes, and takes besides: declared by ours, told by others' signatures."""
    if hasattr(metric, "takes"):
        return metric.takes, metric.optional
    parameters = inspect.signature(metric.update).parameters
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    if "labels" in required:
        return ("x", "labels"), ()
    if len(required) > 1:
        return ("x", "y"), ()
    return ("x",), ("labels",) if "labels" in parameters else ()


def _scalars(name: str, metric: Any) -> dict[str, Tensor]:
    """What is logged of a metric: its value, and its further numbers beside it."""
    value = metric.compute()
    if isinstance(value, Mapping):
        return {f"{name}_{key}": torch.as_tensor(item) for key, item in value.items()}
    values = {name: torch.as_tensor(value)}
    extras: Mapping[str, float] = metric.extras() if hasattr(metric, "extras") else {}
    for key, number in extras.items():
        values[f"{name}_{key}"] = torch.full_like(values[name], number)
    return values


def _smallest(flags: list[int], device: torch.device) -> list[int]:
    if world_size() == 1:
        return flags
    tensor = torch.tensor(flags, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MIN)
    return [int(flag) for flag in tensor.tolist()]
