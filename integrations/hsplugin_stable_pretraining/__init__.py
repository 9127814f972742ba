"""hsplugin in stable-pretraining: a forward function, a method, and geometry of any key."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsplugin_stable_pretraining.forward import align_uniform
    from hsplugin_stable_pretraining.geometry_monitor import GeometryMonitor
    from hsplugin_stable_pretraining.method import AlignUniform, AlignUniformOutput

_MODULES = {
    "AlignUniform": "hsplugin_stable_pretraining.method",
    "AlignUniformOutput": "hsplugin_stable_pretraining.method",
    "GeometryMonitor": "hsplugin_stable_pretraining.geometry_monitor",
    "align_uniform": "hsplugin_stable_pretraining.forward",
}

__all__ = ["AlignUniform", "AlignUniformOutput", "GeometryMonitor", "align_uniform"]


def __getattr__(name: str) -> object:
    # The method imports timm and transformers, which the other two need not wait for.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
