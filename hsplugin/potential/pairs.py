"""Which pairs count, which engine sums them, and how the sums become values and gradients."""

from __future__ import annotations

import math
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype, summing_dtype
from hsplugin.potential import distributed, gram

# Some of the pairs on this rank: how much an ordered pair counts, the logarithm of their share in
# the mean over all, their pull.
_Part = tuple[float, Tensor, Tensor | None]

# An engine is a module of this package with accumulate(...) and available(x).
ENGINES = ("reference", "tiled", "triton")
# Engines that "auto" tries on a type of device, in order; elsewhere the tiles.
PREFERRED = {"cuda": ("triton", "tiled")}


def value_and_gradient(
    x: Tensor,
    queue: Tensor | None,
    t: float,
    intra_batch: bool,
    include_self: bool,
    gather_distributed: bool,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Mean potential of the sets of rows in x, and its gradient by x (empty unless needed).

    The arguments are those of :func:`hsplugin.potential.mean_potential`.

    Raises:
        ValueError: If there are no pairs, or the backend cannot take these features.
    """
    if autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return value_and_gradient(
                x, queue, t, intra_batch, include_self, gather_distributed, backend, need_gradient
            )
    x = x.contiguous()
    ranks = distributed.world_size() if gather_distributed else 1
    if backend == "auto" and queue is None and not include_self and ranks == 1:
        small = gram.value_and_gradient(x, t, need_gradient)
        if small is not None:
            value, gradient = small
            return value, value.new_empty(0) if gradient is None else gradient
    engine = _engine(backend, x)
    everyone, own_offset = distributed.gather_rows(x) if ranks > 1 else (x, 0)
    n, n_all = x.shape[-2], everyone.shape[-2]
    queue_rows = 0 if queue is None else len(queue)
    count = count_pairs(n_all, queue_rows, intra_batch, include_self)

    def accumulate(rows: Tensor, columns: Tensor, own_offset: int | None) -> Any:
        return engine.accumulate(
            rows, columns, t, own_offset=own_offset, need_gradient=need_gradient
        )

    def parts(rows: Tensor, columns: Tensor) -> list[_Part]:
        if n == 0:  # all rows are on other ranks
            return [(1.0, rows.new_full((), -math.inf, dtype=summing_dtype(rows)), None)]
        found: list[_Part] = []
        if intra_batch and n_all > 1:  # each counts half, as the engine sums over ordered pairs
            log, pull = accumulate(rows, columns, own_offset)
            found.append((0.5, log + math.log(n * n_all / 2 / count), pull))
        if include_self:  # these weigh one and have no gradient, but must propagate NaN
            nan = (0 * rows).sum(dtype=summing_dtype(rows))
            found.append((0.5, nan + math.log(n / 2 / count), None))
        if queue is not None:
            log, pull = accumulate(rows, queue.contiguous(), None)
            found.append((1.0, log + math.log(n * queue_rows / count), pull))
        return found

    sets = x.unbind() if x.dim() == 3 else (x,)
    columns = sets  # one tensor, by which an engine recognises a symmetric set
    if everyone is not x:
        columns = everyone.unbind() if x.dim() == 3 else (everyone,)
    parts_of = [parts(*pair) for pair in zip(sets, columns, strict=True)]
    logs_of = [torch.stack([log for _, log, _ in of]) for of in parts_of]
    log_means = torch.stack([logs.logsumexp(0) for logs in logs_of])
    if ranks > 1:
        log_means = distributed.add_in_log_space(log_means)
    dtype = computing_dtype(x.dtype)
    value = log_means.mean().to(dtype)
    if not need_gradient:
        return value, x.new_empty(0, dtype=dtype)
    gradients = []
    for rows, of, logs, log_mean in zip(sets, parts_of, logs_of, log_means, strict=True):
        gradient = None
        # At huge t logarithms are too coarse for their differences to add up to one.
        shares = logs.softmax(0) if ranks == 1 else (logs - log_mean).exp() * ranks
        for (weight, _, pull), share in zip(of, shares.to(dtype), strict=True):
            if pull is None:
                continue
            pull = pull.mul_(2 * t / len(sets) / weight * share)
            gradient = pull if gradient is None else gradient.add_(pull)
        gradients.append(torch.zeros_like(rows, dtype=dtype) if gradient is None else gradient)
    gradient = gradients[0] if len(gradients) == 1 else torch.stack(gradients)
    return value, gradient.view(x.shape)


def count_pairs(rows: int, queue_rows: int, intra_batch: bool, include_self: bool) -> float:
    """How many pairs there are.

    Raises:
        ValueError: If there are none.
    """
    within = rows * (rows - 1) / 2 if intra_batch else 0
    count = within + include_self * rows / 2 + rows * queue_rows
    if count == 0:
        raise ValueError(
            f"x has {rows} row(s) over all ranks, but a pair takes two; use a larger batch"
        )
    return count


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; some versions of torch know it for few."""
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def _engine(backend: str, x: Tensor) -> ModuleType:
    automatic = backend == "auto"
    for name in PREFERRED.get(x.device.type, ("tiled",)) if automatic else (backend,):
        try:
            engine = import_module(f"hsplugin.potential.{name}")
        except ImportError:
            if automatic:
                continue
            raise
        if engine.available(x):
            return engine
    raise ValueError(
        f"backend={backend!r} cannot take {x.dtype} features on {x.device}; use backend='auto'"
    )
