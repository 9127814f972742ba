"""What the losses share: views of any number and form, put onto the unit sphere."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hsplugin.checks import check_labels, computing_dtype
from hsplugin.functional import unit_rows
from hsplugin.positives import class_alignment
from hsplugin.potential.distributed import world_size
from hsplugin.potential.traced import is_traced
from hsplugin.views import Pairs, mean_alignment, stack_views

# Features whose norms differ from one by more than this are not meant to lie on the sphere.
CLEARLY_UNNORMALISED = 1e-2
# The indices of two views.
PAIR = ((0, 1),)
# Sentinel: the asynchronous copy of the norms' error from a GPU has not finished.
_PENDING = -1.0


def named_views(z_a: Tensor, z_b: Tensor | None, others: tuple[Tensor, ...]) -> dict[str, Any]:
    """Views (N, d) by the names that messages call them.

    Args:
        z_a: One view (N, d), or V of them as (N, V, d) if it comes alone.
        z_b: Another view.
        others: Further views.

    Raises:
        TypeError: If the views come in a list.
        ValueError: If there is no view.
    """
    if z_b is not None and not others:
        return {"z_a": z_a, "z_b": z_b}
    if others:
        further = {f"view {i}": view for i, view in enumerate(others, start=3)}
        return {"z_a": z_a, "z_b": z_b, **further}  # None is refused with the name z_b
    if isinstance(z_a, (list, tuple)):
        raise TypeError(
            f"views are passed one by one, got a {type(z_a).__name__} of {len(z_a)}: use "
            f"loss(*views)"
        )
    if not isinstance(z_a, Tensor) or z_a.dim() != 3:
        return {"z_a": z_a}
    if z_a.shape[1] == 0:
        raise ValueError(f"z_a holds no views: its shape (N, V, d) is {tuple(z_a.shape)}")
    return {f"view {i} of z_a": view for i, view in enumerate(z_a.unbind(1))}


def every_pair(views: Mapping[str, Tensor]) -> Pairs:
    """The indices of every pair of views.

    Raises:
        ValueError: If there is one view.
    """
    if len(views) == 2:
        return PAIR
    if len(views) == 1:
        raise ValueError(
            f"alignment takes two views, got {next(iter(views))} alone: pass loss(z_a, z_b), one "
            f"tensor (N, V, d) of V >= 2 views, or labels= by which rows are positives"
        )
    return tuple(combinations(range(len(views)), 2))


def zero(x: Tensor) -> Tensor:
    """0 with the gradient 0, but NaN where x is not finite."""
    return (0 * x).sum(dtype=computing_dtype(x.dtype))


class SphereLoss(nn.Module):
    """Shared by the losses: how views get onto the sphere, whether ranks are gathered, warnings."""

    def __init__(self, normalize: bool, gather_distributed: bool) -> None:
        super().__init__()
        if gather_distributed and not dist.is_available():
            raise ValueError(
                "gather_distributed=True needs torch.distributed, which this torch was built "
                "without; set gather_distributed=False"
            )
        self.normalize = normalize
        self.gather_distributed = gather_distributed
        self._norm_error: Tensor | None = None
        self._norms_checked = normalize
        self._checked: set[str] = set()

    def _stack(self, views: Mapping[str, Tensor]) -> Tensor:
        """The views, checked, as one tensor (v, n, d)."""
        z = stack_views(views, gather_distributed=self.gather_distributed)
        if not self._norms_checked and not is_traced(z):
            self._warn_if_unnormalised(z.detach())
        return z

    def _on_sphere(self, views: Tensor) -> Tensor:
        return unit_rows(views) if self.normalize else views

    def _alignment(self, x: Tensor, pairs: Pairs, alpha: float, labels: Tensor | None) -> Tensor:
        """Alignment of views (v, n, d) over pairs of views, or over the rows of each class."""
        gather = self.gather_distributed
        if labels is None:
            return mean_alignment(x, pairs, alpha, gather_distributed=gather) if pairs else zero(x)
        check_labels(labels, x.shape[1], x.device)
        look = len(x) == 1 and not gather and self._first("positives", x)
        if look and len(labels.unique()) == len(labels):
            self._warn(
                "got labels of which no two are equal: no row has a positive, so alignment is 0, "
                "without a gradient; pass classes, or the samples that the crops are of"
            )
        rows, classes = x.flatten(0, 1), labels.repeat(len(x))
        return class_alignment(rows, classes, alpha, gather_distributed=gather)

    def _lacks_pairs(self, views: Tensor) -> bool:
        """Whether single rows have no others to be uniform with, on any rank; warns once."""
        if self.gather_distributed and world_size() > 1:
            return False
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise ValueError(
                "torch.jit.trace got an example of one row, whose uniformity is the constant 0 and "
                "would stay so for every batch; trace with an example of two rows or more"
            )
        if self._first("pairs", views):
            self._warn(
                "got a batch of one row: it has no pairs, so uniformity counts as 0, without a "
                "gradient; drop_last=True keeps a data loader from ending on such a batch"
            )
        return True

    def _first(self, check: str, views: Tensor) -> bool:
        """Whether this check was not made before; the host may then wait for the GPU, once."""
        if check in self._checked or is_traced(views):
            return False
        self._checked.add(check)
        return True

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script calls first; its language lacks most of what a loss is made of."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}; use torch.compile, "
            f"torch.export or torch.jit.trace, or script the model without its loss"
        )

    def _warn(self, message: str) -> None:
        """Warn at the line that called the loss, however deep in modules it is."""
        frame, level = inspect.currentframe(), 1
        while frame and frame.f_globals.get("__name__", "").startswith(("hsplugin", "torch.")):
            frame, level = frame.f_back, level + 1
        warnings.warn(f"{type(self).__name__} {message}", stacklevel=level)

    @torch.no_grad()
    def _warn_if_unnormalised(self, z: Tensor) -> None:
        """Check the norms of the first batch; on a GPU, read them once a later step has them."""
        if self._norm_error is None:
            if z.numel() == 0:
                return
            error = (torch.linalg.vector_norm(z.float(), dim=-1) - 1).abs().max()
            # Not a CUDA event: modules that hold one can be neither copied nor saved.
            self._norm_error = torch.full(
                (), _PENDING, dtype=error.dtype, device="cpu", pin_memory=z.is_cuda
            )
            self._norm_error.copy_(error, non_blocking=z.is_cuda)
        error_value = float(self._norm_error)
        if error_value == _PENDING:
            return
        self._norms_checked = True
        if error_value > CLEARLY_UNNORMALISED:
            self._warn(
                f"with normalize=False got features whose row norms differ from 1 by up to "
                f"{error_value:.3g}; alignment and uniformity are defined on the unit sphere: pass "
                f"normalize=True, or normalise the features first"
            )
