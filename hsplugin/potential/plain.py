r"""The potential in plain operations of torch, for what a closed form cannot serve.

Engines return a value with its first gradient. Derivatives of higher order, forward mode and the
transforms of torch.func take this path, which torch differentiates and transforms by itself.

Rows meet all columns block by block. A block's weights are not kept but computed again for each
derivative, so memory beyond the features is O(N d) for every order; each order takes about three
times as long as the one before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype
from hsplugin.potential.pairs import autocast_enabled, count_pairs

# Weights of a block; larger blocks are little faster, and some fifteen times this is held.
BLOCK_PAIRS = 2**20

_Function = Callable[..., Any]
_vjp: _Function = torch.func.vjp  # whose type leaves open how many values it returns


def mean_potential(
    x: Tensor, queue: Tensor | None, t: float, intra_batch: bool, include_self: bool
) -> Tensor:
    """Mean over the sets in x of their potentials; see :func:`hsplugin.potential.mean_potential`.

    Raises:
        ValueError: If there are no pairs.
    """
    x = x.to(computing_dtype(x.dtype))
    queue = None if queue is None else queue.to(x.dtype)
    sets = x.unbind() if x.dim() == 3 else (x,)
    values = [_potential(rows, queue, t, intra_batch, include_self) for rows in sets]
    return torch.stack(values).mean()


def _potential(
    x: Tensor, queue: Tensor | None, t: float, intra_batch: bool, include_self: bool
) -> Tensor:
    n, queue_rows = len(x), 0 if queue is None else len(queue)
    count = count_pairs(n, queue_rows, intra_batch, include_self)
    parts: list[tuple[float, Tensor]] = []  # how many pairs, and the log-mean of their weights
    if intra_batch and n > 1:
        parts += [(b * (n - 1) / 2, log) for b, log in _blocks(x, x, t, own=True)]
    if include_self:  # these weigh one and have no gradient, but must propagate NaN
        parts.append((n / 2, (0 * x).sum().reshape(1)))
    if queue is not None:
        parts += [(b * queue_rows, log) for b, log in _blocks(x, queue, t, own=False)]
    return torch.cat([log + math.log(pairs / count) for pairs, log in parts]).logsumexp(0)


def _blocks(rows: Tensor, columns: Tensor, t: float, *, own: bool) -> list[tuple[int, Tensor]]:
    """Number of rows and log-mean weight of each block of rows beside all columns."""
    # Neither distances nor their derivatives depend on the centre.
    centre, scale = columns.detach().mean(dim=0), math.sqrt(2 * t)
    c = (columns - centre) * scale
    r = c if own else (rows - centre) * scale
    logs, step = [], max(1, BLOCK_PAIRS // len(c))
    for start in range(0, len(r), step):
        block = r[start : start + step]
        log_mean = partial(_log_mean_weight, first_own=start if own else None)
        logs.append((len(block), with_derivatives(log_mean, log_mean, block, c)))
    return logs


def _log_mean_weight(r: Tensor, c: Tensor, first_own: int | None) -> Tensor:
    """Log-mean of exp(-|r_i - c_j|^2 / 2) without the pairs j = first_own + i."""
    row_bias, column_bias = r.square().sum(dim=1) / -2, c.square().sum(dim=1) / -2
    exponents = torch.addmm(row_bias.unsqueeze(1) + column_bias, r, c.T)
    pairs = exponents.numel()
    if first_own is not None:
        own = torch.arange(len(r), device=r.device).unsqueeze(1) + first_own
        own = own == torch.arange(len(c), device=r.device)
        exponents = exponents.masked_fill(own, -torch.inf)
        pairs -= len(r)
    largest = exponents.detach().amax()  # a shift, on which no derivative depends
    log_mean: Tensor = ((exponents - largest).exp().sum() / pairs).log() + largest
    return log_mean.reshape(1)  # as torch gives float32 scalars plus numbers float64 tangents


def with_derivatives(compute: _Function, definition: _Function, *inputs: Tensor) -> Any:
    """What one function returns, with the derivatives of another.

    Args:
        compute: Called with the inputs, without recording. Returns a tensor or a tuple of them.
        definition: Has these derivatives. Called again for every derivative, of any order and in
            either mode, so that nothing is kept in between.
        inputs: The tensors to differentiate by.
    """
    if torch.compiler.is_compiling():  # which traces no function with a rule for forward mode
        return _Defined.forward(definition, definition, *inputs)
    return _Defined.apply(compute, definition, *inputs)


def pull_back(function: _Function, inputs: int) -> _Function:
    """From that many inputs and the gradients by the function's outputs to those by its inputs."""

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, pull = _vjp(function, *tensors[:inputs])
        upstream = tensors[inputs:]
        found: tuple[Tensor, ...] = pull(upstream if isinstance(outputs, tuple) else upstream[0])
        return found

    return gradients


def _push_forward(function: _Function) -> _Function:
    """From inputs followed by their tangents to the tangents of the function's outputs.

    The tangents are the transpose of what pulls back, as torch's dual numbers cannot be nested.
    """

    def tangents(*tensors: Tensor) -> Any:
        inputs = tensors[: len(tensors) // 2]
        outputs, pull = _vjp(function, *inputs)
        several = isinstance(outputs, tuple)
        upstream = [torch.zeros_like(output) for output in (outputs if several else (outputs,))]
        _, transpose = _vjp(lambda *u: pull(u if several else u[0]), *upstream)
        found = transpose(tensors[len(inputs) :])
        return found if several else found[0]

    return tangents


class _Defined(torch.autograd.Function):
    """:func:`with_derivatives`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(compute: _Function, definition: _Function, *inputs: Tensor) -> Any:
        with _full_precision(inputs[0]):
            return compute(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.definition, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        gradients = pull_back(ctx.definition, len(inputs))
        return None, None, *with_derivatives(gradients, gradients, *inputs, *upstream)

    @staticmethod
    def jvp(ctx: Any, _compute: None, _definition: None, *tangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        moved = [
            torch.zeros_like(x) if tangent is None else tangent
            for x, tangent in zip(inputs, tangents, strict=True)
        ]
        push = _push_forward(ctx.definition)
        return with_derivatives(push, push, *inputs, *moved)


def _full_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Within it autocast rounds nothing on the device of x."""
    device = x.device.type
    if autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
