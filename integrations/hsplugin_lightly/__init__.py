"""hsplugin in Lightly: a drop-in criterion, and a monitor for any recipe on pytorch_lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsplugin.monitor.callback import GeometryMonitor
    from hsplugin_lightly.align_uniform_loss import AlignUniformLoss

__all__ = ["AlignUniformLoss", "GeometryMonitor"]

_MODULES = {
    "AlignUniformLoss": "hsplugin_lightly.align_uniform_loss",
    "GeometryMonitor": "hsplugin.monitor.callback",
}


def __getattr__(name: str) -> object:
    # The loss needs no Lightning and the monitor no Lightly, so neither is imported for the other.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
