"""Alignment and uniformity on the hypersphere: losses and metrics over one exact potential."""

from typing import TYPE_CHECKING

from hsplugin.functional import align_loss, uniform_loss, uniformity_optimum
from hsplugin.losses import AlignLoss, AlignUniformLoss, AlignUniformTerms, UniformLoss

if TYPE_CHECKING:
    from hsplugin import metrics

__version__ = "0.1.0"

__all__ = [
    "AlignLoss",
    "AlignUniformLoss",
    "AlignUniformTerms",
    "UniformLoss",
    "align_loss",
    "metrics",
    "uniform_loss",
    "uniformity_optimum",
]


def __getattr__(name: str) -> object:
    # torchmetrics takes a second to import, which whoever wants only a loss need not pay.
    if name == "metrics":
        import importlib

        return importlib.import_module("hsplugin.metrics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
