"""The potential in tiles of the Gram matrix, with torch on any device, in O(N d) memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype

# Rows of a tile: large enough for matrix products at full speed, small enough that a tile stays
# in cache between its product, its exponential and the products with it.
TILE = 1024
# Sums of exponentials down to these exponents lose nothing to underflow.
SMALLEST_EXPONENT = {torch.float32: -80.0, torch.float64: -700.0}


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum the weights of all pairs; see :func:`hsplugin.potential.reference.accumulate`.

    Features are centred first: distances stay as they are, while the products that they are
    computed from get no larger than they need be, which is what their rounding depends on.
    """
    dtype = computing_dtype(rows.dtype)
    symmetric = own_offset == 0 and rows is columns
    c = columns.to(dtype)
    centre = c.mean(dim=0)
    c = c - centre
    r = c if symmetric else rows.to(dtype) - centre
    c_bias = c.square().sum(dim=1).mul_(-t)
    r_bias = c_bias if symmetric else r.square().sum(dim=1).mul_(-t)
    tiles = _Tiles(r, c, r_bias, c_bias, t, own_offset, symmetric)

    shift: Tensor | float = 0.0
    # A GPU is not asked for the range of its exponents, for the host would have to wait.
    if r.device.type != "cpu" or not _lower_bound(r_bias, c_bias) > SMALLEST_EXPONENT[dtype]:
        shift = tiles.largest_exponent()
        tiles.r_bias = r_bias - shift

    sums = torch.zeros(len(r), 1, dtype=dtype, device=r.device)
    pull = torch.zeros_like(r) if need_gradient else None
    for i, j, exponents in tiles:
        w = exponents.exp_()
        mirrored = symmetric and i != j
        sums[i] += w.sum(dim=1, keepdim=True)
        if mirrored:
            sums[j] += w.sum(dim=0).unsqueeze(1)
        if pull is not None:
            pull[i].addmm_(w, c[j])
            if mirrored:
                pull[j].addmm_(w.T, r[i])
    total = sums.sum(dtype=torch.float64)
    if pull is not None:
        pull.addcmul_(sums, r, value=-1).div_(total.to(dtype))
    return total.log() + shift, pull


def _lower_bound(r_bias: Tensor, c_bias: Tensor) -> float:
    """A bound of every exponent: points are at most twice their radius apart."""
    return 4 * float(torch.minimum(r_bias.min(), c_bias.min()))


class _Tiles:
    """Iterates over (rows, columns, exponents) of the tiles; exponents live in one buffer."""

    def __init__(
        self,
        r: Tensor,
        c: Tensor,
        r_bias: Tensor,
        c_bias: Tensor,
        t: float,
        own_offset: int | None,
        symmetric: bool,
    ) -> None:
        self.r, self.c, self.r_bias, self.c_bias = r, c, r_bias, c_bias
        self.t, self.own_offset, self.symmetric = t, own_offset, symmetric
        self.buffer = r.new_empty(min(TILE, len(r)) * min(TILE, len(c)))

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for i_start in range(0, len(self.r), TILE):
            i = slice(i_start, min(i_start + TILE, len(self.r)))
            for j_start in range(i_start if self.symmetric else 0, len(self.c), TILE):
                j = slice(j_start, min(j_start + TILE, len(self.c)))
                yield i, j, self._exponents(i, j)

    def _exponents(self, i: slice, j: slice) -> Tensor:
        shape = (i.stop - i.start, j.stop - j.start)
        tile = self.buffer[: shape[0] * shape[1]].view(shape)
        torch.addmm(self.c_bias[j], self.r[i], self.c[j].T, alpha=2 * self.t, out=tile)
        tile.add_(self.r_bias[i].unsqueeze(1))
        if self.own_offset is not None:
            offset = self.own_offset + i.start - j.start
            if -shape[0] < offset < shape[1]:
                tile.diagonal(offset).fill_(-torch.inf)
        return tile

    def largest_exponent(self) -> Tensor:
        largest = self.r.new_full((), -torch.inf)
        for _, _, exponents in self:
            largest = torch.maximum(largest, exponents.max())
        return largest
