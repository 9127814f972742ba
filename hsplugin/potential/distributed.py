"""Pairs over the batches of every rank: this rank's rows meet every rank's columns."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Gather every rank's rows (n_r, d), which may differ in number.

    Returns:
        All rows in the order of ranks, and where this rank's begin. For one rank the rows are
        returned themselves.
    """
    if world_size() == 1:
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = torch.cat(sizes).tolist()
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    columns = torch.cat([g[:count] for g, count in zip(gathered, counts, strict=True)])
    return columns, sum(counts[: dist.get_rank()])


def add_in_log_space(log_value: Tensor) -> Tensor:
    """Logarithm of the sum over ranks of the exponential of a scalar."""
    if world_size() == 1:
        return log_value
    values = [torch.empty_like(log_value) for _ in range(world_size())]
    dist.all_gather(values, log_value)
    return torch.stack(values).logsumexp(0)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of the values (n_r,) of every rank, on every rank.

    Its gradient is such that DDP's averaging yields the gradient of the mean in one process.
    """
    if world_size() == 1:
        return values.mean()
    total = torch.stack([values.detach().sum(), values.new_tensor(len(values))])
    dist.all_reduce(total)
    own = values.sum() * (world_size() / total[1])
    return own + (total[0] / total[1] - own.detach())
