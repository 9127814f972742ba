r"""The log-mean Gaussian potential over pairs: the one operator behind every loss and metric.

Every engine computes the same two quantities in one pass over the pairs, from rows r and columns
c with weights :math:`w_{ij} = e^{-t \|r_i - c_j\|^2}`: the logarithm of their sum S, and
:math:`\sum_j w_{ij} (c_j - r_i) / S`, which the gradient is a multiple of. The upstream gradient
of a scalar is a scalar, so the backward pass only multiplies. Derivatives of that gradient, forward
mode and torch.func take plain operations instead (:mod:`hsplugin.potential.plain`).

:func:`log_mean_potential` checks its arguments. :func:`mean_potential` does not, and takes several
sets of rows at once, as the views of a loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import check_compatible, check_features, check_t, computing_dtype, unknown
from hsplugin.potential import distributed, plain
from hsplugin.potential.pairs import ENGINES, value_and_gradient
from hsplugin.potential.traced import is_traced, is_transformed

BACKENDS = ("auto", *ENGINES)
# Of mean_potential after x, in their order.
_Arguments = tuple[Tensor | None, float, bool, bool, bool, str]


def log_mean_potential(
    x: Tensor,
    t: float = 2.0,
    *,
    queue: Tensor | None = None,
    intra_batch: bool = True,
    include_self: bool = False,
    gather_distributed: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Logarithm of the mean of :math:`e^{-t \|x_i - x_j\|^2}` over pairs, differentiable in x.

    The pairs:

    ================================  ==========================================================
    x alone                           the N (N - 1) / 2 pairs i < j
    x alone, ``include_self``         all N^2 ordered pairs
    ``queue``                         the N K of x and queue, and the N (N - 1) / 2 within x
    ``queue``, ``include_self``       the N K of x and queue, and half of the N^2 ordered pairs
    ``queue``, not ``intra_batch``    the N K of x and queue
    ================================  ==========================================================

    Half-precision features are computed in float32, also under autocast. Memory beyond the
    features is O(N d). Derivatives of any order, forward mode and the transforms of torch.func are
    there too, whatever the backend; :mod:`hsplugin.potential.plain` says what they cost.

    Args:
        x: Features, shape (N, d).
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        queue: Features (K, d) without gradient, of x's dtype and device.
        intra_batch: Whether pairs within x count when there is a queue.
        include_self: Whether each row also pairs with itself.
        gather_distributed: Compute over the rows of all ranks. The value is the same on every
            rank, and DDP's averaged gradient is that of one process with all rows. The queue must
            be the same on every rank.
        backend: "auto" (the fastest engine for the device), "reference", "tiled" or "triton".

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If x or queue is not a floating-point tensor, dtypes differ, or t is not a
            number.
        ValueError: If a shape or device is wrong, there are no pairs, t is out of range, the
            backend is unknown or cannot take these features, or options contradict each other.
        RuntimeError: If differentiated twice, in forward mode or transformed over several ranks.
    """
    t = check_t(t)
    if backend != "auto":
        check_backend(backend)
    if gather_distributed and distributed.world_size() > 1:
        least_rows = 0  # a rank without rows takes part in the collectives too
    else:
        least_rows = 2 if queue is None and not include_self and not gather_distributed else 1
    check_features("x", x, min_rows=least_rows)
    if queue is not None:
        check_features("queue", queue)
        check_compatible("x", x, "queue", queue)
        queue = queue.detach()
    elif not intra_batch:
        raise ValueError("intra_batch=False leaves no pairs without a queue; pass queue=")
    if include_self and not intra_batch:
        raise ValueError(
            "include_self=True needs the pairs within x; it contradicts intra_batch=False"
        )
    return mean_potential(x, queue, t, intra_batch, include_self, gather_distributed, backend)


def mean_potential(
    x: Tensor,
    queue: Tensor | None,
    t: float,
    intra_batch: bool = True,
    include_self: bool = False,
    gather_distributed: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Mean over sets of rows of their log-mean potentials, for arguments already checked.

    Takes one set (n, d) or several (v, n, d), with one collective for all sets; the rest is as in
    :func:`log_mean_potential`.

    Raises:
        ValueError: If there are no pairs, or the backend cannot take these features.
        RuntimeError: As :func:`log_mean_potential`.
    """
    need_gradient = x.requires_grad and torch.is_grad_enabled()
    arguments = (queue, t, intra_batch, include_self, gather_distributed, backend)
    value: Tensor
    if is_traced(x):
        if is_transformed(x):
            if gather_distributed:
                distributed.refuse_transforms(x)
            return plain.mean_potential(x, queue, t, intra_batch, include_self)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            need_gradient = False  # one graph for both; backward computes the gradient
        value = _operator(x, *arguments, need_gradient)[0]
    elif need_gradient:
        value = _Potential.apply(x, arguments)
    else:
        value = value_and_gradient(x, *arguments, False)[0]
    return value


def check_backend(backend: object) -> str:
    """Return the name of a backend, or refuse it and list the backends.

    Raises:
        TypeError: If it is not a string.
        ValueError: If there is no such backend.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string, got {type(backend).__name__}: {backend!r}")
    if backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, BACKENDS))
    return backend


class _Potential(torch.autograd.Function):
    """The operator in eager execution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: _Arguments) -> Tensor:
        value, gradient = value_and_gradient(x, *arguments, True)
        ctx.save_for_backward(x, gradient)
        ctx.arguments, ctx.queue_version = arguments, _version(arguments[0])
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, gradient = ctx.saved_tensors
        return _gradient_by_x(ctx, x, gradient, upstream), None


# torch 2.4 cannot infer a schema from postponed annotations.
_operator = torch.library.custom_op(
    "hsplugin::log_mean_potential",
    value_and_gradient,
    mutates_args=(),
    schema="(Tensor x, Tensor? queue, float t, bool intra_batch, bool include_self, "
    "bool gather_distributed, str backend, bool need_gradient) -> (Tensor, Tensor)",
)


@_operator.register_fake
def _(
    x: Tensor,
    queue: Tensor | None,
    t: float,
    intra_batch: bool,
    include_self: bool,
    gather_distributed: bool,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = computing_dtype(x.dtype)
    shape = x.shape if need_gradient else (0,)
    return x.new_empty((), dtype=dtype), x.new_empty(shape, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    x, *arguments, _ = inputs
    ctx.save_for_backward(x, output[1])
    ctx.arguments, ctx.queue_version = tuple(arguments), _version(arguments[0])


def _backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    x, gradient = ctx.saved_tensors
    if gradient.shape != x.shape:  # recorded by jit.trace, or by export where none was needed
        _check_queue(ctx)
        gradient = _operator(x.detach(), *ctx.arguments, True)[1]
    return _gradient_by_x(ctx, x, gradient, upstream), None, None, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


def _gradient_by_x(ctx: Any, x: Tensor, gradient: Tensor, upstream: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return (gradient * upstream).to(x.dtype)

    def in_closed_form(x: Tensor, upstream: Tensor) -> tuple[Tensor]:
        return ((gradient * upstream).to(x.dtype),)

    def potential(x: Tensor) -> Tensor:
        _check_queue(ctx)
        return mean_potential(x, *ctx.arguments)

    by_x: Tensor
    (by_x,) = plain.with_derivatives(in_closed_form, plain.pull_back(potential, 1), x, upstream)
    return by_x


def _version(queue: Tensor | None) -> int | None:
    """Counts changes in place."""
    return None if queue is None or queue.is_inference() else queue._version


def _check_queue(ctx: Any) -> None:
    """Refuse to compute again from a queue that is no longer what it was."""
    if _version(ctx.arguments[0]) != ctx.queue_version:
        raise RuntimeError(
            "the queue was changed in place since the loss was computed, so that this derivative "
            "would be wrong; pass queue.clone()"
        )
