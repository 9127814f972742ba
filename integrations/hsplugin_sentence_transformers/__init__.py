"""hsplugin in sentence-transformers: a loss, an evaluator, and a callback of the trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsplugin_sentence_transformers.align_uniform_loss import AlignUniformLoss
    from hsplugin_sentence_transformers.geometry_callback import GeometryCallback
    from hsplugin_sentence_transformers.geometry_evaluator import GeometryEvaluator

_MODULES = {
    "AlignUniformLoss": "hsplugin_sentence_transformers.align_uniform_loss",
    "GeometryCallback": "hsplugin_sentence_transformers.geometry_callback",
    "GeometryEvaluator": "hsplugin_sentence_transformers.geometry_evaluator",
}

__all__ = ["AlignUniformLoss", "GeometryCallback", "GeometryEvaluator"]


def __getattr__(name: str) -> object:
    # The loss needs torch alone, so sentence-transformers is not imported for it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
