"""The metrics of one stage, fed with views, computed over all ranks, each by itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hsplugin.functional import align_loss, uniform_loss, unit_rows
from hsplugin.monitor.taps import Views
from hsplugin.potential.distributed import world_size

if TYPE_CHECKING:
    from torchmetrics import Metric

CLASSES = {
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "wasserstein_uniformity": "WassersteinUniformity",
    "rankme": "RankMe",
    "effective_rank": "EffectiveRank",
    "alpha_req": "AlphaReQ",
    "nesum": "NESum",
    "lidar": "LiDAR",
}


# Beyond it, the spectrum of a d x d matrix takes minutes on a CPU; who wants it asks for it.
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

    import hsplugin.metrics

    if isinstance(metrics, str) or not isinstance(metrics, (Mapping, Sequence)):
        raise TypeError(
            "metrics must be a list of names or a mapping from name to torchmetrics.Metric, "
            f"got {type(metrics).__name__}: {metrics!r}"
        )
    if not metrics:
        raise ValueError(f"metrics is empty; choose from {', '.join(CLASSES)}")
    if isinstance(metrics, Mapping):
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"metrics[{name!r}] must be a torchmetrics.Metric, got {type(metric).__name__}"
                )
        return dict(metrics)
    chosen = {}
    for name in metrics:
        if name not in CLASSES:
            raise ValueError(
                f"metrics: {name!r} is unknown; choose from {', '.join(CLASSES)}, or pass a "
                "mapping such as {'tolerance': hsplugin.metrics.Tolerance(num_classes=10)}"
            )
        kind = getattr(hsplugin.metrics, CLASSES[name])
        chosen[name] = kind(max_samples=max_samples) if name == "uniformity" else kind()
    return chosen


class _MissingError(ValueError):
    """A metric takes what the batch does not have."""


class Measures:
    """Own copies of some metrics; what fails in one leaves the others unharmed.

    Args:
        metrics: Metrics by name; copied.
        widest: Leave out what needs a d x d matrix where d is larger than this.
        lenient: Find nothing wrong with metrics for whose second view or labels there are none.
    """

    def __init__(
        self, metrics: Mapping[str, Metric], widest: int | None = None, lenient: bool = False
    ) -> None:
        self._metrics = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
        self._problems: dict[str, str] = {}
        self._lost = 0
        self._widest = widest
        self._lenient = lenient
        self._dim: int | None = None

    def reset(self) -> None:
        """Forget what was measured."""
        for metric in self._metrics.values():
            metric.reset()
        self._problems.clear()
        self._lost = 0

    def update(self, views: Views) -> None:
        """Feed each metric what it takes of the views, without rows that hold NaN or infinity."""
        views = self._finite(views)
        if not len(views.x):
            return
        self._dim = views.x.shape[1]
        for name, metric in self._metrics.items():
            try:
                self._check_width(metric)
                metric.to(views.x.device).update(*_arguments(metric, views))
            except _MissingError as error:
                if not self._lenient:
                    self._problems.setdefault(name, str(error))
            except Exception as error:
                self._problems.setdefault(name, " ".join(str(error).split()))

    def _check_width(self, metric: Metric) -> None:
        from hsplugin.metrics.moments import MomentMetric

        if self._widest and (self._dim or 0) > self._widest and isinstance(metric, MomentMetric):
            raise ValueError(
                f"features have {self._dim} dimensions and it takes time and memory for a matrix "
                f"of their square; ask for it in metrics=[...] if that is wanted"
            )

    def _finite(self, views: Views) -> Views:
        if views.y is not None:
            # Under autocast a predictor's output and its target may differ in precision.
            views = Views(views.x, views.y.to(views.x.dtype), views.labels)
        finite = views.finite()
        self._lost += len(views.x) - len(finite.x)
        return finite

    def of_step(self, views: Views) -> dict[str, Tensor]:
        """Alignment and uniformity of one batch, left on the device."""
        values = {}
        x = unit_rows(views.x)
        if "alignment" in self._metrics and views.y is not None:
            alpha = getattr(self._metrics["alignment"], "alpha", 2.0)
            values["alignment"] = align_loss(x, unit_rows(views.y).to(x.dtype), alpha)
        if "uniformity" in self._metrics and len(x) > 1:
            values["uniformity"] = uniform_loss(x, getattr(self._metrics["uniformity"], "t", 2.0))
        return values

    def compute(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Values over all ranks, and by metric what is wrong with those that have none.

        A rank that could not update a metric keeps all ranks from computing it, as they would
        otherwise wait for it for ever.
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
                # What went wrong in an update is the cause of what it left to compute.
                self._problems.setdefault(name, " ".join(str(error).split()))
        problems = {name: f"{name} is not measured: {why}" for name, why in self._problems.items()}
        if self._lost:
            problems["rows"] = f"rows with NaN or infinite features are left out: {self._lost}"
        return values, problems

    def collapse(self, values: Mapping[str, float]) -> str:
        """What in the values says that the features collapse, or nothing.

        Complete: features within a tenth of the attainable uniformity from all being one point.
        Dimensional: a rank below two, or below a hundredth of the dimensions.
        """
        found = []
        if self._dim is None:
            return ""
        if "uniformity" in values and "uniformity_gap" in values:
            value, optimum = values["uniformity"], values["uniformity"] - values["uniformity_gap"]
            if value > 0.1 * optimum:
                found.append(
                    f"uniformity is {value:.3f}, of which 0 is a single point and {optimum:.3f} "
                    f"the best possible in {self._dim} dimensions"
                )
        for name in ("rankme", "effective_rank"):
            least = min(self._dim, max(2.0, 0.01 * self._dim))
            if name in values and values[name] < least < self._dim:
                found.append(f"{name} is {values[name]:.2f} of {self._dim} dimensions")
        if found and "alignment" in values:
            found.append(f"alignment is {values['alignment']:.4f}")
        return "; ".join(found)


def _arguments(metric: Metric, views: Views) -> tuple[Tensor, ...]:
    parameters = inspect.signature(metric.update).parameters
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    if required == ["views"]:
        return (torch.stack([views.x, _needed(views.y, "a pair of views")], dim=1),)
    if "labels" in required:
        return (views.x, _needed(views.labels, "labels in the batch"))
    if "labels" in parameters and views.labels is not None:
        return (views.x, views.labels)
    if len(required) < 2:
        return (views.x,)
    return (views.x, _needed(views.y, "a pair of views"))


def _needed(tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise _MissingError(f"it needs {what}, and there is none")
    return tensor


def _scalars(name: str, metric: Metric) -> dict[str, Tensor]:
    """What is logged of a metric: its value, and what its report knows beside it."""
    from hsplugin.metrics import Uniformity

    value = metric.compute()
    if isinstance(value, Mapping):
        return {f"{name}_{key}": torch.as_tensor(item) for key, item in value.items()}
    values = {name: torch.as_tensor(value)}
    if isinstance(metric, Uniformity):
        report = metric.report()
        values[f"{name}_gap"] = values[name] - report.optimum
        if len(report.per_class) > 1:
            within = sum(report.per_class.values()) / len(report.per_class)
            values[f"{name}_within_class"] = torch.full_like(values[name], within)
    return values


def _smallest(flags: list[int], device: torch.device) -> list[int]:
    if world_size() == 1:
        return flags
    tensor = torch.tensor(flags, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MIN)
    return [int(flag) for flag in tensor.tolist()]
