"""The paper's definitions in float64, written without anything of the library that they test."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def align(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return (x.double() - y.double()).norm(dim=1).pow(alpha).mean()


def log_mean_potential(
    x: Tensor,
    t: float,
    queue: Tensor | None = None,
    intra_batch: bool = True,
    include_self: bool = False,
) -> Tensor:
    x = x.double()
    squared = (x[:, None, :] - x[None, :, :]).square().sum(-1)
    exponents, log_weights = [], []
    if include_self:
        exponents.append(-t * squared.flatten())
        log_weights.append(math.log(0.5))
    elif intra_batch:
        i, j = torch.triu_indices(len(x), len(x), offset=1)
        exponents.append(-t * squared[i, j])
        log_weights.append(0.0)
    if queue is not None:
        cross = (x[:, None, :] - queue.double()[None, :, :]).square().sum(-1)
        exponents.append(-t * cross.flatten())
        log_weights.append(0.0)
    log_sum = torch.cat([e + w for e, w in zip(exponents, log_weights, strict=True)]).logsumexp(0)
    count = sum(len(e) * math.exp(w) for e, w in zip(exponents, log_weights, strict=True))
    return log_sum - math.log(count)


def value_and_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    value = function(x)
    value.backward()
    return value.detach(), x.grad
