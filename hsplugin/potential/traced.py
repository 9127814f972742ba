"""What torch is doing with a tensor besides computing it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_traced(x: Tensor) -> bool:
    """Whether x is traced, transformed or has no values, so that eager shortcuts would be wrong.

    In eager execution, calling a custom operator takes as long as the arithmetic of a small batch.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.is_meta
        or is_transformed(x)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_transformed(x: Tensor) -> bool:
    """Whether torch.func transforms what is computed, or x carries a tangent of forward mode."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
