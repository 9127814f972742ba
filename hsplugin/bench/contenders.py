r"""Ways to compute :math:`\log\mathrm{mean}_{i<j} e^{-t\|x_i - x_j\|^2}`: ours and others.

Each takes unit rows x (n, d) and t and returns the scalar, differentiable in x. A contender that
cannot run on this machine raises :class:`UnavailableError` with one line that says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hsplugin
from hsplugin.potential import BACKENDS, log_mean_potential

Potential = Callable[[Tensor, float], Tensor]
# The widest features for which torch's compiler has tiles of flex_attention that fit.
WIDEST_FLEX_ATTENTION = 256


class UnavailableError(Exception):
    """Why a contender cannot run here."""


@dataclass(frozen=True)
class Contender:
    """A way to compute the potential.

    Attributes:
        function: From (x, t) to the scalar.
        buffers: How many n x n matrices it holds at once, forward and backward, to predict what
            would not fit; 0 if its memory is linear in n.
        meaning: What it is, for the legend of the table.
        normalizes: Whether it normalises its rows, so that its gradient has no radial part.
        yardstick: Whether it computes something else, is timed only forward, and only when named.
    """

    function: Potential
    buffers: float
    meaning: str
    normalizes: bool = False
    yardstick: bool = False


def _ours(backend: str) -> Potential:
    def potential(x: Tensor, t: float) -> Tensor:
        try:
            return log_mean_potential(x, t, backend=backend)
        except (ImportError, ValueError) as error:
            raise UnavailableError(str(error)) from error

    return potential


def _our_loss(x: Tensor, t: float) -> Tensor:
    return hsplugin.AlignUniformLoss(t=t)(x, x)


def _lightly(x: Tensor, t: float) -> Tensor:
    try:
        from lightly.loss.hypersphere_loss import HypersphereLoss
    except ImportError as error:
        raise UnavailableError("needs Lightly: pip install 'hsplugin[lightly]'") from error
    loss: Tensor = HypersphereLoss(t=t)(x, x)
    return loss


def _pdist(x: Tensor, t: float) -> Tensor:
    return torch.pdist(x).pow(2).mul(-t).exp().mean().log()


def _without_self(log_weights: Tensor) -> Tensor:
    n = len(log_weights)
    own = torch.eye(n, dtype=torch.bool, device=log_weights.device)
    weights = log_weights.exp().masked_fill(own, 0.0)
    return (weights.sum() / (n * (n - 1))).log()


def _cdist(x: Tensor, t: float) -> Tensor:
    return _without_self(torch.cdist(x, x).pow(2).mul(-t))


def _gram(x: Tensor, t: float) -> Tensor:
    squared = x.square().sum(dim=1)
    return _without_self((2 * x @ x.T - squared[:, None] - squared[None, :]) * t)


@functools.cache
def _compiled_gram() -> Potential:
    return torch.compile(_gram)


def _compiled(x: Tensor, t: float) -> Tensor:
    return _compiled_gram()(x, t)


def _keops(x: Tensor, t: float) -> Tensor:
    try:
        from pykeops.torch import LazyTensor
    except ImportError as error:
        raise UnavailableError("needs KeOps: pip install pykeops, and a C++ compiler") from error
    n = len(x)
    squared = ((LazyTensor(x[:, None, :]) - LazyTensor(x[None, :, :])) ** 2).sum(-1)
    total: Tensor = (-t * squared).exp().sum(dim=1).sum()
    return ((total - n) / (n * (n - 1))).log()


class _Attention(torch.autograd.Function):
    """Fused attention of x to itself with scale 2t; its log-sum-exp and output give the potential.

    On a CPU, torch's flash attention cannot leave out the diagonal, so it is subtracted, which
    cancels for large t; on CUDA, flex_attention leaves it out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: float) -> Tensor:
        n, qkv = len(x), x[None, None]
        if x.is_cuda:
            attend, mask = _flex_attention(n)
            output, log_sums = attend(qkv, qkv, qkv, mask, 2 * t)
            log_rows, mean = log_sums[0, 0] - 2 * t, output[0, 0].to(x.dtype)
            rows = log_rows.double().exp().to(log_rows.dtype)
        else:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            output, log_sums = flash(qkv, qkv, qkv, scale=2 * t)
            with_self = (log_sums.flatten() - 2 * t).exp()
            rows = with_self - 1
            mean = (output[0, 0] * with_self[:, None] - x) / rows[:, None]
        total = rows.sum()
        ctx.save_for_backward((mean - x) * (rows / total * 4 * t)[:, None])
        return (total / (n * (n - 1))).log()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


@functools.cache
def _flex_attention(n: int) -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def others(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i != j

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Any:
        return flex_attention(q, k, v, block_mask=mask, scale=scale, return_lse=True)

    make_mask = torch.compile(create_block_mask)  # uncompiled, it would make an n x n matrix
    return torch.compile(attend), make_mask(others, None, None, n, n, device="cuda")


def _attention(x: Tensor, t: float) -> Tensor:
    if x.is_cuda and x.shape[1] > WIDEST_FLEX_ATTENTION:
        raise UnavailableError(
            f"torch has no tiles of flex_attention for d above {WIDEST_FLEX_ATTENTION}"
        )
    try:
        value: Tensor = _Attention.apply(x, t)
    except Exception as error:  # Inductor raises whatever its compiler or backend raises
        raise UnavailableError(f"fused attention: {first_line(error)}") from error
    return value


def _sdpa(x: Tensor, t: float) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise UnavailableError("only its forward is timed")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    qkv = x.detach()[None, None]
    with sdpa_kernel(fused):
        return nn.functional.scaled_dot_product_attention(qkv, qkv, qkv, scale=2 * t).sum()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


CONTENDERS: dict[str, Contender] = {
    "pdist": Contender(_pdist, 3.0, "the paper's formula, torch.pdist"),
    "hsplugin": Contender(_ours("auto"), 0, "this package, by default"),
    **{
        name: Contender(
            _ours(name), 5.0 * (name == "reference"), f"this package, the {name} engine"
        )
        for name in BACKENDS
        if name != "auto"
    },
    "cdist": Contender(_cdist, 7.0, "torch.cdist"),
    "gram": Contender(_gram, 8.0, "eager Gram matrix"),
    "gram-compiled": Contender(_compiled, 8.0, "torch.compile of the Gram matrix"),
    "attention": Contender(_attention, 0, "torch's fused attention, log-sum-exp and output"),
    "keops": Contender(_keops, 0, "KeOps' Gaussian sum"),
    "lightly-loss": Contender(_lightly, 6.0, "Lightly's HypersphereLoss, two views", True),
    "our-loss": Contender(_our_loss, 0, "hsplugin.AlignUniformLoss, two views", True),
    "sdpa": Contender(_sdpa, 0, "torch's fused attention, one forward", yardstick=True),
}
