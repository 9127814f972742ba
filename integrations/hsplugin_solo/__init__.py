"""hsplugin for solo-learn: methods, configs and a geometry monitor for an unmodified checkout.

With hsplugin installed beside solo-learn's requirements, ``python main_pretrain.py --config-name
align_uniform`` works in a plain clone: a Hydra plugin calls :func:`register` and adds our configs
to the search path. Nothing heavy is imported until a name below is used.

Without the automatic plugin:
    In Python: ``hsplugin_solo.register()`` after ``solo`` is importable.
    For scripts without Hydra: ``hsplugin run main_knn.py ...``.
    In a YAML: ``hydra.callbacks.hsplugin._target_: hsplugin_solo.hydra_callback.Register`` and
    ``hydra.searchpath: [pkg://hsplugin_solo.conf]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsplugin.monitor.callback import GeometryMonitor
    from hsplugin_solo.auxiliary import with_align_uniform
    from hsplugin_solo.methods import AlignUniform, AlignUniformMoCo
    from hsplugin_solo.registry import register

_HOME = {
    "AlignUniform": "hsplugin_solo.methods",
    "AlignUniformMoCo": "hsplugin_solo.methods",
    "GeometryMonitor": "hsplugin.monitor.callback",
    "register": "hsplugin_solo.registry",
    "with_align_uniform": "hsplugin_solo.auxiliary",
}

__all__ = [
    "AlignUniform",
    "AlignUniformMoCo",
    "GeometryMonitor",
    "register",
    "with_align_uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
