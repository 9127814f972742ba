"""Pairs over the batches of every rank: this rank's rows meet every rank's columns.

A rank's share of the gradient is complete without the others, as each ordered pair (i, j) is
computed where row i lives; so the backward pass communicates nothing. What a rank returns is
multiplied by the number of ranks, which the averaging of gradients by DDP divides by again.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# Ranks compare dtypes by their place in this list.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def world_size() -> int:
    """Number of ranks, 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 where no process group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Gather every rank's rows (n_r, d), which may differ in number.

    Returns:
        All rows in the order of ranks, and where this rank's begin. For one rank the rows are
        returned themselves.

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
    padded = rows
    if len(rows) < longest:
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: len(rows)] = rows
    columns = rows.new_empty(len(counts) * longest, rows.shape[1])
    gathered = list(columns.split(longest))
    dist.all_gather(gathered, padded)
    if min(counts) < longest:
        columns = torch.cat([g[:count] for g, count in zip(gathered, counts, strict=True)])
    return columns, sum(counts[: dist.get_rank()])


def _counts(rows: Tensor) -> list[int]:
    """How many rows each rank has; ranks that differ in more than that would hang or crash."""
    dtype = _DTYPES.index(rows.dtype) if rows.dtype in _DTYPES else len(_DTYPES)
    own = torch.tensor([*rows.shape, dtype], device=rows.device)
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


def add_in_log_space(log_value: Tensor) -> Tensor:
    """Logarithm of the sum over ranks of the exponential of a scalar, the same on every rank."""
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
    """
    if world_size() == 1:
        return values.mean()
    total = torch.stack([values.detach().sum(), values.new_tensor(len(values))])
    dist.all_reduce(total)
    if len(values) == 0 and total[1] == 0:
        raise ValueError("every rank's batch is empty; use a larger batch")
    own = values.sum() * (world_size() / total[1])
    return own + (total[0] / total[1] - own.detach())
