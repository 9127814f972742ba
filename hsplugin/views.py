"""Alignment and uniformity of views stacked to one tensor (v, n, d): what the losses compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsplugin.checks import check_features, check_pair, check_t, computing_dtype
from hsplugin.functional import (
    pair_distances,
    power_of_length,
    row_lengths,
    unit_rows,
)
from hsplugin.potential import mean_potential
from hsplugin.potential.distributed import mean_and_share, mean_over_ranks, world_size
from hsplugin.potential.pairs import value_and_gradient
from hsplugin.potential.plain import pull_back, with_derivatives
from hsplugin.potential.traced import is_traced

Pairs = Sequence[tuple[int, int]]


class Terms(NamedTuple):
    """Settings of the loss over views.

    ``pairs`` holds the indices of the two views of each pair that alignment averages over; without
    pairs alignment is 0. The other fields are those of :class:`hsplugin.AlignUniformLoss`.
    """

    pairs: Pairs
    align_weight: float = 1.0
    uniform_weight: float = 1.0
    alpha: float = 2.0
    t: float = 2.0
    normalize: bool = True
    gather_distributed: bool = False
    backend: str = "auto"


def stack_views(views: Mapping[str, Tensor], *, gather_distributed: bool) -> Tensor:
    """Check views of the same samples, each (n, d), and stack them to (v, n, d).

    Args:
        views: Features by the name that messages call them.
        gather_distributed: Whether the loss gathers over ranks, where a rank may have no rows.

    Raises:
        TypeError: If a view is not a floating-point tensor, or dtypes differ.
        ValueError: If views differ in shape or device, or are empty.
    """
    # A rank without rows must take part in the collectives, or the others hang.
    min_rows = 0 if gather_distributed and world_size() > 1 else 1
    first, *others = views
    if not others:
        check_features(first, views[first], min_rows=min_rows)
    for name in others:
        check_pair(first, views[first], name, views[name], min_rows=min_rows)
    return torch.stack(tuple(views.values()))


def mean_alignment(
    views: Tensor, pairs: Pairs, alpha: float, *, gather_distributed: bool
) -> Tensor:
    """Mean of :func:`hsplugin.align_loss` over pairs of views (v, n, d), in plain operations.

    Args:
        views: Features of the same samples.
        pairs: Indices of the two views of each pair.
        alpha: The exponent.
        gather_distributed: Whether to average over the rows of every rank, in one collective.

    Raises:
        ValueError: On every rank, if gathering and no rank has a row.
    """
    z = views.unbind()
    of_pairs = [pair_distances(z[i], z[j], alpha) for i, j in pairs]
    distances = of_pairs[0] if len(of_pairs) == 1 else torch.cat(of_pairs)
    return mean_over_ranks(distances) if gather_distributed else distances.mean()


def align_uniform(views: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss, mean alignment over pairs of views (v, n, d), and mean uniformity of views.

    In eager execution this is one autograd node with its gradient in closed form, because in small
    batches every node of plain operations takes as long as its arithmetic. Higher derivatives and
    torch.func take plain operations. Overwrites the views.

    Returns:
        Three scalars, float64 for float64 features and float32 for all others.

    Raises:
        TypeError: If t is not a number.
        ValueError: If t is out of range, no two rows make a pair, or the backend cannot take these
            features.
        RuntimeError: If differentiated twice, in forward mode or transformed over several ranks.
    """
    check_t(terms.t)
    dtype = computing_dtype(views.dtype)
    learned = any(
        isinstance(x, Tensor) for x in (terms.align_weight, terms.uniform_weight, terms.alpha)
    )
    as_given = not terms.normalize and views.dtype != dtype  # engines read half precision directly
    if learned or as_given or is_traced(views):
        return _in_plain_operations(views, terms)
    views = views.to(dtype)
    if views.requires_grad and torch.is_grad_enabled():
        values: tuple[Tensor, Tensor, Tensor] = _Terms.apply(views, terms)
        return values
    return _evaluate(views, terms, need_gradient=False)[0]


def _in_plain_operations(views: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`align_uniform` with a potential that is differentiable by itself."""
    x = unit_rows(views) if terms.normalize else views
    gather = terms.gather_distributed
    uniform = mean_potential(x, None, terms.t, gather_distributed=gather, backend=terms.backend)
    align = torch.zeros_like(uniform)
    if terms.pairs:
        align = mean_alignment(x, terms.pairs, terms.alpha, gather_distributed=gather)
    # In one dimension, as torch gives float32 scalars times numbers float64 tangents.
    weighted = (align.reshape(1) * terms.align_weight, uniform.reshape(1) * terms.uniform_weight)
    return torch.add(*weighted).squeeze(0), align, uniform


class _Terms(torch.autograd.Function):
    """:func:`align_uniform` in eager execution."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.terms = terms
        values, saved = _evaluate(views.detach(), terms, need_gradient=True)
        ctx.save_for_backward(views, *saved)
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        views, *saved = ctx.saved_tensors
        terms, given = ctx.terms, [x for x in upstream if x is not None]
        if not given:
            return None, None
        if not torch.is_grad_enabled():
            return _gradient(views, saved, terms, upstream), None
        reached = [i for i, x in enumerate(upstream) if x is not None]

        def in_closed_form(_: Tensor, *given: Tensor) -> tuple[Tensor]:
            by_value: list[Tensor | None] = [None] * len(upstream)
            for i, x in zip(reached, given, strict=True):
                by_value[i] = x
            return (_gradient(unit.detach(), saved, terms, by_value),)

        def values(views: Tensor) -> tuple[Tensor, ...]:
            found = _in_plain_operations(views, terms)
            return tuple(found[i] for i in reached)

        unit = views
        if terms.normalize:  # the views are unit rows since the forward pass
            views = with_derivatives(partial(torch.mul, saved[0]), lambda x: x * 1, unit)
        (by_views,) = with_derivatives(in_closed_form, pull_back(values, 1), views, *given)
        return by_views, None


def _gradient(
    x: Tensor, saved: Sequence[Any], terms: Terms, upstream: Sequence[Tensor | None]
) -> Tensor:
    """Gradient by the views, of which x are the unit rows, from what :func:`_evaluate` kept."""
    lengths, uniform_gradient, *differences = saved
    by_loss, by_align, by_uniform = upstream
    if by_loss is not None:
        aligned, uniformed = by_loss * terms.align_weight, by_loss * terms.uniform_weight
        by_align = aligned if by_align is None else by_align + aligned
        by_uniform = uniformed if by_uniform is None else by_uniform + uniformed
    if by_uniform is not None:
        total = uniform_gradient * by_uniform
    else:
        assert by_align is not None  # one of the terms is differentiated
        total = torch.zeros_like(x) * by_align
    if by_align is not None:
        for (i, j), difference in zip(terms.pairs, differences, strict=True):
            part = difference * by_align
            total[i].add_(part)
            total[j].sub_(part)
    if lengths is not None:
        along = (total * x).sum(dim=-1, keepdim=True)
        total = torch.addcmul(total, along, x, value=-1).div_(lengths)
    return total


def _evaluate(
    views: Tensor, terms: Terms, *, need_gradient: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]:
    """Loss, alignment, uniformity; the rows' lengths, uniformity's gradient, and alignment's."""
    lengths = row_lengths(views) if terms.normalize else None
    x = views if lengths is None else views.div_(lengths)
    # First, as its collectives refuse ranks that differ in dtype or dimension.
    uniform, uniform_gradient = value_and_gradient(
        x, None, terms.t, True, False, terms.gather_distributed, terms.backend, need_gradient
    )
    align, differences = _alignment(x, terms, need_gradient)
    loss = torch.add(terms.align_weight * align, uniform, alpha=terms.uniform_weight)
    return (loss, align, uniform), (lengths, uniform_gradient, *differences)


def _alignment(x: Tensor, terms: Terms, need_gradient: bool) -> tuple[Tensor, list[Tensor]]:
    """Mean alignment over pairs of views, and its gradient by the first view of each pair."""
    if not terms.pairs:
        return x.new_zeros(()), []
    z, alpha = x.unbind(), terms.alpha
    differences = [z[i] - z[j] for i, j in terms.pairs]
    # Not vector_norm, which is wrong by per cents for millions of numbers in float32.
    squares = [difference.square() for difference in differences]
    if not terms.normalize:  # an infinite feature makes value and gradient NaN
        squares = [square + 0 * square for square in squares]
    if alpha != 2:
        squares = [square.sum(dim=-1, keepdim=True) for square in squares]
    totals = [power_of_length(square, alpha).sum() for square in squares]
    total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
    mean, share = mean_and_share(
        total, len(totals) * x.shape[1], gather_distributed=terms.gather_distributed
    )
    if not need_gradient:
        return mean, []
    for difference, square in zip(differences, squares, strict=True):
        difference.mul_(share * alpha)
        if alpha != 2:
            # The derivative at zero is infinite for alpha < 1; identical pairs get zero.
            difference.mul_(square.pow(alpha / 2 - 1).masked_fill(square == 0, 0.0))
    return mean, differences
