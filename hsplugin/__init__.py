"""Alignment and uniformity on the hypersphere: losses and metrics over one exact potential."""

from typing import TYPE_CHECKING

from hsplugin.functional import align_loss, uniform_loss, uniformity_optimum
from hsplugin.losses import AlignLoss, AlignUniformLoss, AlignUniformTerms, UniformLoss

if TYPE_CHECKING:
    from hsplugin import metrics
    from hsplugin.monitor.callback import GeometryMonitor

__version__ = "0.1.0"

__all__ = [
    "AlignLoss",
    "AlignUniformLoss",
    "AlignUniformTerms",
    "GeometryMonitor",
    "UniformLoss",
    "align_loss",
    "metrics",
    "uniform_loss",
    "uniformity_optimum",
]


def __getattr__(name: str) -> object:
    import importlib

    # torchmetrics takes a second to import, which whoever wants only a loss need not pay; Lightning
    # takes more and may be missing.
    if name == "metrics":
        return importlib.import_module("hsplugin.metrics")
    if name == "GeometryMonitor":
        return importlib.import_module("hsplugin.monitor.callback").GeometryMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
