r"""The log-mean Gaussian potential over pairs: the one operator behind every loss and metric.

Every engine computes the same two quantities in one pass over the pairs, from rows r and columns
c with weights :math:`w_{ij} = e^{-t \|r_i - c_j\|^2}`: the logarithm of their sum S, and
:math:`\sum_j w_{ij} (c_j - r_i) / S`, of which the gradient is a multiple. As the upstream
gradient of a scalar is a scalar, the backward pass only multiplies.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hsplugin.checks import check_compatible, check_features, check_t, computing_dtype, unknown
from hsplugin.potential import distributed, few, reference, tiled

BACKENDS = ("auto", "reference", "tiled", "triton")


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

    Which pairs count:

    ================================  ==========================================================
    x alone                           the N (N - 1) / 2 pairs i < j
    x alone, ``include_self``         all N^2 ordered pairs
    ``queue``                         the N K of x and queue, and the N (N - 1) / 2 within x
    ``queue``, ``include_self``       the N K of x and queue, and half of the N^2 ordered pairs
    ``queue``, not ``intra_batch``    the N K of x and queue
    ================================  ==========================================================

    Half-precision features are computed with in float32, also under autocast. Memory beyond the
    features is O(N d). The second derivative is not provided: asking for it is an error.

    Args:
        x: Features, shape (N, d).
        t: Inverse width of the Gaussian, above 0 and at most 1e37.
        queue: Features (K, d) that take no gradient, of x's dtype and device.
        intra_batch: Whether pairs within x count when there is a queue.
        include_self: Whether each row also pairs with itself.
        gather_distributed: Let x be the rows of all ranks together. The value is the same on every
            rank, and DDP's averaging of gradients yields that of one process with all rows.
            The queue is taken to be the same on every rank.
        backend: "auto" (the fastest engine for the device), "reference", "tiled" or "triton".

    Returns:
        A scalar, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If x or queue is no floating-point tensor, their dtypes differ, or t no number.
        ValueError: If a shape or device is wrong, there are no pairs, t is out of range, the
            backend is unknown or cannot take these features, or options contradict each other.
        RuntimeError: If differentiated twice, or in forward mode.
    """
    t = check_t(t)
    if backend != "auto":
        check_backend(backend)
    if gather_distributed and distributed.world_size() > 1:
        least_rows = 0  # a rank without rows has to take part all the same
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
    # An operator would silently drop what forward mode, if anything is in it, wants to know.
    if _forward_mode() and forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(
            "the log-mean potential cannot be differentiated in forward mode; use backward, or "
            "write the loss with torch.cdist where you need forward mode"
        )
    need_gradient = x.requires_grad and torch.is_grad_enabled()
    arguments = (queue, t, intra_batch, include_self, gather_distributed, backend, need_gradient)
    value: Tensor
    if is_traced(x):
        value = _operator(x, *arguments)[0]
    elif need_gradient:
        value = _Potential.apply(x, arguments)
    else:
        value = _value_and_gradient(x, *arguments)[0]
    return value


def check_backend(backend: object) -> str:
    """Return the name of a backend, or say which exist.

    Raises:
        TypeError: If it is no string.
        ValueError: If there is no such backend.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string, got {type(backend).__name__}: {backend!r}")
    if backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, BACKENDS))
    return backend


def _engine(backend: str, x: Tensor) -> ModuleType:
    if backend == "reference":
        return reference
    if backend == "tiled" or (backend == "auto" and not x.is_cuda):
        return tiled
    try:
        from hsplugin.potential import triton
    except ImportError:
        if backend == "auto":
            return tiled
        raise
    if triton.available(x):
        return triton
    if backend == "auto":
        return tiled
    raise ValueError(
        f"backend='triton' cannot take {x.dtype} features on {x.device}; use backend='auto'"
    )


def _value_and_gradient(
    x: Tensor,
    queue: Tensor | None,
    t: float,
    intra_batch: bool,
    include_self: bool,
    gather_distributed: bool,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The value, and its gradient by x (empty unless needed), in one pass over the pairs."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _value_and_gradient(
                x, queue, t, intra_batch, include_self, gather_distributed, backend, need_gradient
            )
    rows = x.contiguous()
    ranks = distributed.world_size() if gather_distributed else 1
    if backend == "auto" and queue is None and not include_self and ranks == 1:
        of_few = few.value_and_gradient(rows, t, need_gradient)
        if of_few is not None:
            value, gradient = of_few
            return value, value.new_empty(0) if gradient is None else gradient
    engine = _engine(backend, x)
    columns, own_offset = distributed.gather_rows(rows) if ranks > 1 else (rows, 0)
    n, n_all = len(rows), len(columns)

    def accumulate(columns: Tensor, own_offset: int | None) -> tuple[Tensor, Tensor | None]:
        if n == 0:  # one of several ranks, of which the others have rows
            return rows.new_full((), -math.inf, dtype=torch.float64), None
        return engine.accumulate(  # type: ignore[no-any-return]
            rows, columns, t, own_offset=own_offset, need_gradient=need_gradient
        )

    # How much each pair of a sum counts, the logarithm of this rank's sum, and its pull.
    terms: list[tuple[float, Tensor, Tensor | None]] = []
    count = 0.0
    if intra_batch and n_all > 1:
        # Over ordered pairs the sum is twice as large; so is the gradient over a row's share.
        terms.append((0.5, *accumulate(columns, own_offset)))
        count += n_all * (n_all - 1) / 2
    if include_self:
        # A row's pair with itself weighs one and has no gradient, but NaN must not be lost in it.
        log_n = math.log(n) if n else -math.inf
        terms.append((0.5, log_n + 0 * rows.sum(dtype=torch.float64), None))
        count += n_all / 2
    if queue is not None:
        terms.append((1.0, *accumulate(queue.contiguous(), None)))
        count += n_all * len(queue)
    if count == 0:
        raise ValueError(
            f"x has {n_all} row(s) over all ranks, but a pair takes two; use a larger batch"
        )
    dtype = computing_dtype(x.dtype)
    if len(terms) == 1 and ranks == 1:  # the usual case, which a small batch would feel
        share, log_sum, pull = terms[0]
        value = log_sum.add_(math.log(share / count)).to(dtype)
        if not need_gradient:
            return value, rows.new_empty(0, dtype=dtype)
        if pull is None:
            return value, torch.zeros_like(rows, dtype=dtype)
        return value, pull.mul_(2 * t / share)
    log_total = torch.stack([log_sum + math.log(share) for share, log_sum, _ in terms]).logsumexp(0)
    if ranks > 1:
        log_total = distributed.add_in_log_space(log_total)
    gradient = rows.new_zeros(rows.shape if need_gradient else 0, dtype=dtype)
    for _, log_sum, pull in terms:
        if pull is not None:
            gradient.addcmul_(pull, ((log_sum - log_total).exp() * (2 * t * ranks)).to(dtype))
    return (log_total - math.log(count)).to(dtype), gradient


def is_traced(x: Tensor) -> bool:
    """Whether something other than plain eager execution looks on, and needs an operator to see.

    Where it does, x may be without values.

    In eager execution the operator would cost as much as all of a small batch's arithmetic.
    """
    return (
        torch.compiler.is_compiling()
        or _forward_mode()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.is_meta
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _forward_mode() -> bool:
    return forward_ad._current_level >= 0


class _Potential(torch.autograd.Function):
    """The operator in eager execution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        value, gradient = _value_and_gradient(x, *arguments)
        ctx.save_for_backward(x, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _gradient_by_x(ctx, upstream), None


# The schemas stand written out because torch 2.4 cannot read them from postponed annotations.
_operator = torch.library.custom_op(
    "hsplugin::log_mean_potential",
    _value_and_gradient,
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


@torch.library.custom_op(
    "hsplugin::scale_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor upstream, Tensor x) -> Tensor",
)
def _scale_gradient(gradient: Tensor, upstream: Tensor, x: Tensor) -> Tensor:
    """Gradient times upstream; takes x only so that a second differentiation comes by here."""
    return (gradient * upstream).to(x.dtype)


@_scale_gradient.register_fake
def _(gradient: Tensor, upstream: Tensor, x: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=x.dtype)


def _refuse_second_derivative(ctx: Any, upstream: Tensor) -> None:
    raise RuntimeError(
        "the log-mean potential cannot be differentiated twice: its gradient is computed in the "
        "forward pass; write the loss with torch.cdist where you need double backward"
    )


_scale_gradient.register_autograd(_refuse_second_derivative)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _gradient_by_x(ctx: Any, upstream: Tensor) -> Tensor:
    x, gradient = ctx.saved_tensors
    if torch.is_grad_enabled():  # someone wants to differentiate again, and has to be told
        by_x: Tensor = _scale_gradient(gradient, upstream, x)
        return by_x
    by_x = gradient * upstream
    return by_x if by_x.dtype == x.dtype else by_x.to(x.dtype)


def differentiable_once(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient by x, in x's dtype, whose own differentiation says why it cannot be."""
    if torch.is_grad_enabled():
        by_x: Tensor = _scale_gradient(gradient, gradient.new_ones(()), x)
        return by_x
    return gradient.to(x.dtype)


def _backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    by_x = None if upstream is None else _gradient_by_x(ctx, upstream)
    return by_x, None, None, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)
