"""The potential in tiles of the Gram matrix, with torch on any device, in O(N d) memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype, summing_dtype

# Size of a tile: on a CPU it should stay in cache between product, exponential and the next
# product; on other devices its work should outweigh the kernel launches.
CPU_TILE_BYTES_PER_THREAD = 3 * 2**18
DEVICE_TILE_BYTES = 2**26
# Products of smaller matrices are slower.
LEAST_SIDE = 576
# Sums of exponentials with exponents down to these lose nothing to underflow.
SMALLEST_EXPONENT = {torch.float32: -80.0, torch.float64: -700.0}


def available(features: Tensor) -> bool:
    """Whether this engine can take these features: any."""
    return True


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    r"""Sum the weights of all pairs; see :func:`hsplugin.potential.reference.accumulate`.

    With u the features less their mean and times :math:`\sqrt{2t}`, the exponent of a pair is
    :math:`u_i \cdot u_j - \|u_i\|^2 / 2 - \|u_j\|^2 / 2`. Centring does not change distances but
    keeps products, and so their rounding errors, small. In the self set, a tile off the diagonal
    serves its rows and, transposed, its columns.
    """
    dtype = computing_dtype(rows.dtype)
    symmetric = own_offset == 0 and rows is columns
    scale = math.sqrt(2 * t)
    c = columns.to(dtype)
    centre = c.mean(dim=0)
    c = (c - centre).mul_(scale)
    r = c if symmetric else (rows.to(dtype) - centre).mul_(scale)
    tiles = _Tiles(r, c, own_offset, symmetric)

    sums, pull = r.new_zeros(len(r)), torch.zeros_like(r) if need_gradient else None
    sums_of = sums.split(tiles.row_step)
    pull_of = None if pull is None else pull.split(tiles.row_step)
    for i, r_i in enumerate(tiles.rows):
        for j in tiles.columns_beside(i):
            w = tiles.exponents(i, j).exp_()
            sums_of[i].add_(w.sum(dim=1))
            if pull_of is not None:
                pull_of[i].addmm_(w, tiles.columns[j])
            if symmetric and j > i:
                sums_of[j].add_(w.sum(dim=0))
                if pull_of is not None:
                    pull_of[j].addmm_(w.T, r_i)
    total = sums.sum(dtype=summing_dtype(sums))
    log_mean = (total / (len(r) * len(c))).log()
    if tiles.largest is not None:
        log_mean = log_mean + tiles.largest
    if pull is None:
        return log_mean, None
    pull.addcmul_(sums.unsqueeze(1), r, value=-1)
    return log_mean, pull.div_((total * scale).to(dtype))


class _Tiles:
    """The exponents of all pairs, block of rows by block of columns."""

    def __init__(self, r: Tensor, c: Tensor, own_offset: int | None, symmetric: bool) -> None:
        self.own_offset, self.symmetric = own_offset, symmetric
        self.largest: Tensor | None = None
        self.row_step, self.column_step = tile_shape(r, c, symmetric=symmetric)
        c_bias = torch.linalg.vecdot(c, c).div_(-2)
        r_bias = c_bias if symmetric else torch.linalg.vecdot(r, r).div_(-2)
        self.rows, self.row_bias = r.split(self.row_step), r_bias.split(self.row_step)
        self.columns, self.column_bias = self.rows, self.row_bias
        if not symmetric:
            self.columns, self.column_bias = (
                c.split(self.column_step),
                c_bias.split(self.column_step),
            )
        self._biases = (c_bias,) if symmetric else (r_bias, c_bias)
        self._tile = c.new_empty(len(self.rows[0]) * len(self.columns[0]))  # buffer of all tiles
        self.largest = self._shift()

    def columns_beside(self, i: int) -> range:
        return range(i if self.symmetric else 0, len(self.columns))

    def exponents(self, i: int, j: int) -> Tensor:
        """The exponents of one tile, in the buffer of the previous one."""
        r, c = self.rows[i], self.columns[j]
        tile = self._tile.narrow(0, 0, len(r) * len(c)).view(len(r), len(c))
        # This order, with scaled features, rounds (i, j) and (j, i) alike. Otherwise, at large t,
        # rows that almost touch would not pull at each other equally.
        torch.add(self.row_bias[i].unsqueeze(1), self.column_bias[j], out=tile)
        tile.addmm_(r, c.T)
        if self.largest is not None:
            # Subtracted from exponents, not biases: rounding of a bias could change the largest.
            tile.sub_(self.largest)
        if self.own_offset is not None:
            own = self.own_offset + i * self.row_step - j * self.column_step
            if -len(r) < own < len(c):
                tile.diagonal(own).fill_(-math.inf)
        return tile

    def _shift(self) -> Tensor | None:
        """The largest exponent, to be subtracted from all, where all could underflow.

        On a GPU always, because reading the range of exponents would make the host wait.
        """
        r = self.rows[0]
        if r.device.type == "cpu":
            # Points are at most twice their radius apart.
            lower_bound = 4 * min(float(bias.min()) for bias in self._biases)
            if lower_bound > SMALLEST_EXPONENT[r.dtype]:
                return None
        largest = r.new_full((), -math.inf)
        for i in range(len(self.rows)):
            for j in self.columns_beside(i):
                largest = torch.maximum(largest, self.exponents(i, j).max())
        return largest


def tile_shape(r: Tensor, c: Tensor, *, symmetric: bool) -> tuple[int, int]:
    """Rows and columns of the fastest tile of r (n, d) and c (m, d)."""
    size = DEVICE_TILE_BYTES
    if r.device.type == "cpu":
        size = CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads()
    area = size // r.element_size()
    side = max(LEAST_SIDE, math.isqrt(area) // 64 * 64)
    if symmetric or len(r) >= side:
        return side, side
    return len(r), max(side, area // len(r))
