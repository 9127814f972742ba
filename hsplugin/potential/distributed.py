"""Pairs over the batches of every rank: this rank's rows meet every rank's columns.

Each ordered pair (i, j) is computed on the rank of row i, so a rank's gradient is complete without
the others and the backward pass communicates nothing. A rank's gradient is multiplied by the number
of ranks, because DDP averages gradients and so divides by it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from hsplugin.potential.traced import is_transformed

# Ranks compare dtypes by their index in this list.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def world_size() -> int:
    """Number of ranks, 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 where no process group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Gather every rank's rows (..., n_r, d), which may differ in number.

    Returns:
        All rows (..., n, d) in the order of ranks, and the index of this rank's first. For one
        rank the rows themselves.

    Raises:
        TypeError: On every rank, if ranks hold different dtypes.
        ValueError: On every rank, if ranks hold features of different dimensions.
    """
    if world_size() == 1:
        return rows, 0
    counts = _counts(rows)
    longest = max(counts)
    if longest == 0:
        return rows, 0
    padding = longest - rows.shape[-2]
    padded = torch.nn.functional.pad(rows, (0, 0, 0, padding)) if padding else rows.contiguous()
    gathered = list(padded.new_empty(len(counts), *padded.shape).unbind())
    dist.all_gather(gathered, padded)
    parts = [part[..., :count, :] for part, count in zip(gathered, counts, strict=True)]
    return torch.cat(parts, dim=-2), sum(counts[: rank()])


def _counts(rows: Tensor) -> list[int]:
    """How many rows each rank has; other differences are refused, as they would hang or crash."""
    dtype = _DTYPES.index(rows.dtype) if rows.dtype in _DTYPES else len(_DTYPES)
    own = torch.tensor([*rows.shape[-2:], dtype], device=rows.device)
    shapes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(shapes, own)
    counts, dims, dtypes = torch.stack(shapes, dim=1).tolist()
    if len(set(dims)) > 1:
        raise ValueError(
            f"x must have the same dimension d on every rank, got {dims} by rank; "
            f"gather_distributed=False keeps ranks apart"
        )
    if len(set(dtypes)) > 1:
        names = [str(_DTYPES[i]) if i < len(_DTYPES) else "another" for i in dtypes]
        raise TypeError(
            f"x must have one dtype on every rank, got {names} by rank; convert it with .to(...)"
        )
    return [int(count) for count in counts]


def refuse_transforms(x: Tensor) -> None:
    """Refuse what collectives would get wrong: torch.func and forward mode over several ranks.

    A second derivative is of this kind too.

    Raises:
        RuntimeError: If there are several ranks and x is transformed.
    """
    if world_size() > 1 and is_transformed(x):
        raise RuntimeError(
            "with gather_distributed=True over several ranks, a loss can be differentiated once, "
            "by backward, and not transformed by torch.func; set gather_distributed=False to take "
            "each rank's batch by itself"
        )


def add_in_log_space(log_value: Tensor) -> Tensor:
    """Elementwise log of the sum over ranks of the exponential, the same on every rank."""
    if world_size() == 1:
        return log_value
    values = [torch.empty_like(log_value) for _ in range(world_size())]
    dist.all_gather(values, log_value)
    return torch.stack(values).logsumexp(0)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of the values (n_r,) of every rank, on every rank.

    Its gradient is such that DDP's averaging yields the gradient of the mean in one process.

    Raises:
        ValueError: On every rank, if there is no value on any.
        RuntimeError: If transformed, as :func:`refuse_transforms` says.
    """
    refuse_transforms(values)
    own = values.sum()
    mean, share = mean_and_share(own.detach(), len(values), gather_distributed=True)
    own = own * share
    return own + (mean - own.detach())


def mean_and_share(
    total: Tensor, count: int, *, gather_distributed: bool
) -> tuple[Tensor, Tensor | float]:
    """Mean of values that add up to ``total`` here, and its derivative by each of them.

    Args:
        total: Sum of this rank's values, a scalar.
        count: How many values they are.
        gather_distributed: Whether to average over every rank. The derivative is then multiplied
            by the number of ranks, because DDP divides by it.

    Raises:
        ValueError: On every rank, if there is no value on any.
    """
    if not gather_distributed or world_size() == 1:
        return total / count, 1 / count
    sums = torch.stack([total, total.new_tensor(count)])
    dist.all_reduce(sums)
    if count == 0 and sums[1] == 0:
        raise ValueError("every rank's batch is empty; use a larger batch")
    return sums[0] / sums[1], world_size() / sums[1]
