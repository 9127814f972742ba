"""Alignment where positives are rows of one class, or of one sample with any number of views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsplugin.checks import computing_dtype
from hsplugin.functional import pair_distances
from hsplugin.potential.distributed import gather_rows, world_size
from hsplugin.potential.traced import is_traced


def class_alignment(
    x: Tensor, labels: Tensor, alpha: float, *, gather_distributed: bool = False
) -> Tensor:
    r"""Mean distance of rows to the other rows of their class, in plain operations.

    .. math::
        \frac{1}{|A|} \sum_{i \in A} \frac{1}{|P(i)|} \sum_{p \in P(i)} \|x_i - x_p\|^\alpha,
        \qquad P(i) = \{p \neq i : c_p = c_i\}, \quad A = \{i : P(i) \neq \emptyset\}

    For alpha = 2 the sum over the pairs of a class of m rows with mean :math:`\mu` is
    :math:`m \sum_i \|x_i - \mu\|^2`, so that time and memory are O(N d). For other alphas time is
    N d times the size of the largest class, and memory still O(N d); compiled, traced or
    transformed, where no value may be read, both are O(N^2 d).

    Args:
        x: Features (N, d).
        labels: Integers (N,), the classes.
        alpha: The exponent.
        gather_distributed: Whether the rows of every rank count. Value and, after DDP's averaging,
            gradient are those of one process; every rank computes the whole.

    Returns:
        A scalar, 0 with the gradient 0 where no row has a positive.
    """
    x = x.to(computing_dtype(x.dtype))
    ranks = world_size() if gather_distributed else 1
    if ranks > 1:
        own, (x, start) = x, gather_rows(x.detach())
        labels = gather_rows(labels.long()[:, None])[0][:, 0]
        x = torch.cat([x[:start], own, x[start + len(own) :]])
    # Sorted classes become 0, 1, ... without the host's waiting for how many there are.
    labels, order = labels.sort()
    x = x[order]
    changes = (labels[1:] != labels[:-1]).long()
    # Sizes are taken from tensors, as a number would stay in a trace or an export.
    classes = torch.cat([torch.zeros_like(labels[:1], dtype=torch.long), changes]).cumsum(0)
    ones = torch.ones_like(labels, dtype=x.dtype)
    rows_of = torch.zeros_like(ones).index_add(0, classes, ones)  # of each class
    rows = rows_of[classes]  # of the class of each row
    anchors = (rows > 1).sum().clamp(min=1)
    weights = (rows > 1) / (rows - 1).clamp(min=1) / anchors  # of each ordered pair
    if alpha == 2:
        means = torch.zeros_like(x).index_add(0, classes, x) / rows_of.clamp(min=1)[:, None]
        deviations = (x - means[classes]).square().sum(dim=1)
        align = (2 * rows * weights * deviations).sum()
    elif is_traced(x):
        same = classes.unsqueeze(1) == classes
        distances = pair_distances(x.unsqueeze(1), x, alpha)
        align = (distances * same * weights.unsqueeze(1)).sum()
    else:
        align, weights = 0 * x.sum(), 2 * weights
        for shift in range(1, int(rows_of.max()) if len(x) else 0):
            arguments = x, classes, weights, shift, alpha
            # Checkpointed, or the distances of every shift would wait for the backward pass.
            align = align + checkpoint(
                _shifted, *arguments, use_reentrant=False, preserve_rng_state=False
            )
    if ranks > 1:  # DDP divides the gradient by the number of ranks
        multiplied = ranks * align
        align = multiplied + (align - multiplied).detach()
    return align


def _shifted(x: Tensor, classes: Tensor, weights: Tensor, shift: int, alpha: float) -> Tensor:
    """Weighted distances of each row to the one ``shift`` places on, where it is of its class."""
    same = classes[shift:] == classes[:-shift]
    return (pair_distances(x[:-shift], x[shift:], alpha) * weights[:-shift] * same).sum()
