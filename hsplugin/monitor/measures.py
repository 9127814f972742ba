"""The metrics of one stage: fed with views, computed over all ranks, each on its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hsplugin.metrics.inputs import MissingInputError, select_inputs
from hsplugin.monitor.views import Views
from hsplugin.potential.distributed import world_size

if TYPE_CHECKING:
    from torchmetrics import Metric

# Beyond it, the spectrum of a d x d matrix takes minutes on a CPU; it has to be asked for.
WIDEST_BY_DEFAULT = 2048


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
        widest: Leave out metrics that need a d x d matrix where d is larger than this.
        lenient: Leave out silently the metrics that lack a second view or labels.
    """

    def __init__(
        self, metrics: Mapping[str, Metric], widest: int | None = None, lenient: bool = False
    ) -> None:
        # Any, as ours declare more of themselves than torchmetrics' do.
        self._metrics: dict[str, Any] = {n: copy.deepcopy(metric) for n, metric in metrics.items()}
        self._problems: dict[str, str] = {}
        self._lost = 0
        self._widest = widest
        self._lenient = lenient
        self._dim: int | None = None

    def reset(self) -> None:
        """Forget everything measured."""
        for metric in self._metrics.values():
            metric.reset()
        self._problems.clear()
        self._lost = 0

    def update(self, views: Views) -> None:
        """Feed each metric what it takes of the views, less rows with NaN or infinity."""
        views = self._finite(views)
        if not len(views.x):
            return
        self._dim = views.x.shape[1]
        for name, metric in self._metrics.items():
            try:
                self._check_width(metric)
                metric.to(views.x.device).update(*_arguments(metric, views))
            except MissingInputError as error:
                if not self._lenient:
                    self._problems.setdefault(name, str(error))
            except Exception as error:
                self._problems.setdefault(name, " ".join(str(error).split()))

    def _check_width(self, metric: Any) -> None:
        wide = self._widest and (self._dim or 0) > self._widest
        if wide and getattr(metric, "needs_matrix", False):
            raise ValueError(
                f"features have {self._dim} dimensions and it takes time and memory for a matrix "
                f"of their square; ask for it in metrics=[...] if that is wanted"
            )

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
        names = list(self._metrics)
        usable = _smallest([int(self._metrics[name].update_count > 0) for name in names], device)
        values: dict[str, Tensor] = {}
        for name, use in zip(names, usable, strict=True):
            if not use:
                continue
            try:
                values.update(_scalars(name, self._metrics[name].to(device)))
            except Exception as error:
                # An earlier error in update is the cause of this one.
                self._problems.setdefault(name, " ".join(str(error).split()))
        problems = {name: f"{name} is not measured: {why}" for name, why in self._problems.items()}
        if self._lost:
            problems["rows"] = f"rows with NaN or infinite features are left out: {self._lost}"
        return values, problems

    def collapse(self, values: Mapping[str, float]) -> str:
        """Why the values show a collapse of the features, or nothing."""
        found = [
            reason
            for name, metric in self._metrics.items()
            if self._dim is not None and name in values and hasattr(metric, "collapse")
            if (reason := metric.collapse(values[name], self._dim))
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
