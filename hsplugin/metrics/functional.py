"""The metrics as functions of features that are all there.

Each function, such as ``rankme``, is defined in the file of its metric and computes as the class
does, with the same checks. As the losses, none normalises: those defined on the unit sphere
(alignment, uniformity, Wasserstein uniformity, tolerance, intrinsic dimension) expect unit rows,
which :func:`hsplugin.metrics.directions.directions` makes and the classes of
:mod:`hsplugin.metrics` make by default.

Example:
    >>> import torch
    >>> from hsplugin.metrics import functional
    >>> round(functional.rankme(torch.eye(4)).item(), 3)
    4.0
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor

from hsplugin.metrics import METRICS, OF_TWO_ENCODERS

_METRICS = {**METRICS, **OF_TWO_ENCODERS}
__all__ = list(_METRICS)


def __getattr__(name: str) -> Callable[..., Tensor]:
    if name not in _METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function: Callable[..., Tensor] = getattr(sys.modules[_METRICS[name].__module__], name)
    return function


def __dir__() -> list[str]:
    return sorted(_METRICS)
