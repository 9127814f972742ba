r"""The whole loss of a small batch on a CPU in one step, where the number of calls decides.

Up to some hundred rows, a call into torch costs as much as what it computes. Here both views go
through normalisation, alignment and uniformity together, in a third of the calls. For unit rows x
the weight of a pair is :math:`e^{-2t} e^{2t\,x_i \cdot x_j}`, and of the gradient

.. math:: \frac{\partial U}{\partial x_i} = \frac{4t}{S} \sum_{j \ne i} w_{ij} (x_j - x_i)

the part along :math:`x_i` is lost in the derivative of normalisation, so it is never computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import SHORTEST_ROW, computing_dtype
from hsplugin.potential import differentiable_once, is_traced
from hsplugin.potential.few import LARGEST_EXPONENT, LEAST_SPREAD, MOST_ROWS

# 2t is the largest exponent there is.
LARGEST_T = LARGEST_EXPONENT / 2


def align_uniform_terms(
    z_a: Tensor, z_b: Tensor, align_weight: float, uniform_weight: float, t: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Weighted loss, alignment (alpha = 2) and mean uniformity of two views (N, d).

    Returns:
        Three scalars, differentiable once; or None where the way of large batches has to be taken:
        elsewhere than on a CPU, with many rows or one, a large t, rows that cannot be normalised,
        or features near to a collapse.
    """
    if is_traced(z_a) or is_traced(z_b):
        return None
    if not z_a.is_cpu or not 2 <= len(z_a) <= MOST_ROWS or t > LARGEST_T:
        return None
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return align_uniform_terms(z_a, z_b, align_weight, uniform_weight, t)
    with torch.no_grad():
        x = torch.stack((z_a, z_b)).to(computing_dtype(z_a.dtype))
        norms = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        shortest, longest = map(float, norms.aminmax())
        if not (shortest >= SHORTEST_ROW and longest < math.inf):
            return None
        x = x.div_(norms)
        weights = torch.baddbmm(x.new_empty(1, 1, 1), x, x.mT, beta=0, alpha=2 * t).exp_()
        weights.diagonal(dim1=1, dim2=2).zero_()
        sums = weights.sum((1, 2)).tolist()
    n = len(z_a)
    uniform_a, uniform_b = (math.log(total / (n * (n - 1))) - 2 * t for total in sums)
    if not max(uniform_a, uniform_b) < LEAST_SPREAD * 2 * t:
        return None
    uniform = (uniform_a + uniform_b) / 2
    scales = [2 * t / total for total in sums]
    loss, align, uniform_value = _Terms.apply(
        z_a, z_b, x, norms, weights, (align_weight, uniform_weight), uniform, scales
    )
    return loss, align, uniform_value


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor,
        x: Tensor,
        norms: Tensor,
        weights: Tensor,
        term_weights: tuple[float, float],
        uniform: float,
        scales: list[float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        apart = x[0] - x[1]
        align = float(torch.dot(apart.view(-1), apart.view(-1))) / x.shape[1]
        needed = ctx.needs_input_grad[:2]
        if any(needed):
            ctx.set_materialize_grads(False)
            # A view without gradient may be overwritten, or be a tensor that cannot be saved.
            views = (z if need else None for z, need in zip((z_a, z_b), needed, strict=True))
            ctx.save_for_backward(*views, x, norms, torch.bmm(weights, x), apart)
            ctx.factors = term_weights, x.new_tensor(scales).view(2, 1, 1)
        values = (term_weights[0] * align + term_weights[1] * uniform, align, uniform)
        loss, align_value, uniform_value = (
            torch.scalar_tensor(value, dtype=x.dtype, device="cpu") for value in values
        )
        return loss, align_value, uniform_value

    @staticmethod
    def backward(
        ctx: Any, by_loss: Tensor | None, by_align: Tensor | None, by_uniform: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (align_weight, uniform_weight), scales = ctx.factors
        z_a, z_b, x, norms, pull, apart = ctx.saved_tensors
        align = _upstream(align_weight, by_loss, by_align)
        uniform = _upstream(uniform_weight, by_loss, by_uniform)
        gradient = torch.zeros_like(x) if uniform is None else pull * (scales * uniform)
        if align is not None:
            towards = apart * (align * (2 / x.shape[1]))
            gradient = gradient + torch.stack((towards, -towards))
        along = (gradient * x).sum(dim=2, keepdim=True)
        gradient = (gradient - along * x) / norms
        by_views = (
            None if z is None else differentiable_once(part, z)
            for z, part in zip((z_a, z_b), gradient.unbind(), strict=True)
        )
        return *by_views, *(None,) * 6


def _upstream(weight: float, by_loss: Tensor | None, by_term: Tensor | None) -> Tensor | None:
    """What comes down to one term, by the loss and by itself."""
    if by_loss is None:
        return by_term
    return weight * by_loss if by_term is None else weight * by_loss + by_term
