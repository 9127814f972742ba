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

from hsplugin.checks import computing_dtype
from hsplugin.potential import differentiable_once, is_traced

# Beyond it the arithmetic decides, which the tiled engine does with half of the products.
MOST_ROWS = 512
# Up to here no weight comes near to what float32 cannot hold.
LARGEST_T = 20.0
# Rows shorter than this have no direction worth following; see hsplugin.losses.normalize.
SHORTEST_ROW = 1e-6


def align_uniform_terms(
    z_a: Tensor, z_b: Tensor, align_weight: float, uniform_weight: float, t: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Weighted loss, alignment (alpha = 2) and mean uniformity of two views (N, d).

    Returns:
        Three scalars, differentiable once; or None where the way of large batches has to be taken:
        elsewhere than on a CPU, with many rows or one, a large t, or rows that cannot be
        normalised.
    """
    fits = z_a.is_cpu and 2 <= len(z_a) <= MOST_ROWS and t <= LARGEST_T
    if not fits or is_traced(z_a) or is_traced(z_b):
        return None
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return align_uniform_terms(z_a, z_b, align_weight, uniform_weight, t)
    with torch.no_grad():
        x = torch.stack((z_a, z_b)).to(computing_dtype(z_a.dtype))
        norms = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        if not float(norms.min()) >= SHORTEST_ROW:
            return None
        x = x.div_(norms)
    loss, align, uniform = _Terms.apply(z_a, z_b, x, norms, align_weight, uniform_weight, t)
    return loss, align, uniform


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor,
        x: Tensor,
        norms: Tensor,
        align_weight: float,
        uniform_weight: float,
        t: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[1]
        weights = torch.baddbmm(x.new_empty(1, 1, 1), x, x.mT, beta=0, alpha=2 * t).exp_()
        weights.diagonal(dim1=1, dim2=2).zero_()
        sum_a, sum_b = weights.sum((1, 2)).tolist()
        uniform = math.log(sum_a * sum_b) / 2 - 2 * t - math.log(n * (n - 1))
        apart = x[0] - x[1]
        align = float(torch.dot(apart.view(-1), apart.view(-1))) / n
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(z_a, z_b, x, norms, torch.bmm(weights, x), apart)
            ctx.factors = align_weight, uniform_weight, t, (sum_a, sum_b)
        values = (align_weight * align + uniform_weight * uniform, align, uniform)
        loss, align_value, uniform_value = (x.new_tensor(value) for value in values)
        return loss, align_value, uniform_value

    @staticmethod
    def backward(
        ctx: Any, by_loss: Tensor | None, by_align: Tensor | None, by_uniform: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        align_weight, uniform_weight, t, sums = ctx.factors
        z_a, z_b, x, norms, pull, apart = ctx.saved_tensors
        loss, align, uniform = (
            0.0 if upstream is None else float(upstream)
            for upstream in (by_loss, by_align, by_uniform)
        )
        of_apart = 2 / x.shape[1] * (align + align_weight * loss)
        of_pull = [2 * t / total * (uniform + uniform_weight * loss) for total in sums]
        with torch.no_grad():
            gradient = pull * pull.new_tensor(of_pull).view(2, 1, 1)
            gradient[0].add_(apart, alpha=of_apart)
            gradient[1].sub_(apart, alpha=of_apart)
            along = (gradient * x).sum(dim=2, keepdim=True)
            gradient.addcmul_(along, x, value=-1).div_(norms)
        return (
            differentiable_once(gradient[0], z_a),
            differentiable_once(gradient[1], z_b),
            *(None,) * 5,
        )
