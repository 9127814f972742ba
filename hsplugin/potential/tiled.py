"""The potential in tiles of the Gram matrix, with torch on any device, in O(N d) memory."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from hsplugin.checks import computing_dtype

# What a tile may take: on a CPU it should stay in the cache between its product, its exponential
# and the products with it; elsewhere its work should outweigh the launching of it.
CPU_TILE_BYTES_PER_THREAD = 3 * 2**19
DEVICE_TILE_BYTES = 2**26
# Sums of exponentials down to these exponents lose nothing to underflow.
SMALLEST_EXPONENT = {torch.float32: -80.0, torch.float64: -700.0}
# Multiplications in a product from which oneDNN makes up for its longer preparation.
ONEDNN_WORK = 2**22


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    r"""Sum the weights of all pairs; see :func:`hsplugin.potential.reference.accumulate`.

    With u the features less their mean, times the root of 2t, the exponent of a pair is
    :math:`u_i \cdot u_j - \|u_i\|^2 / 2 - \|u_j\|^2 / 2`. Taking the mean off leaves distances as
    they are, while the products that they are computed from get no larger than need be, which is
    what their rounding depends on. In the self set, a tile off the diagonal serves its rows and,
    transposed, its columns.
    """
    dtype = computing_dtype(rows.dtype)
    symmetric = own_offset == 0 and rows is columns
    scale = math.sqrt(2 * t)
    c = columns.to(dtype)
    centre = c.mean(dim=0)
    c = c.sub(centre).mul_(scale)
    r = c if symmetric else rows.to(dtype).sub(centre).mul_(scale)
    tiles = _Tiles(r, c, own_offset, symmetric)

    sums: list[Any] = [None] * len(tiles.rows)
    mirrored_pulls: list[Tensor | None] = [None] * len(tiles.rows)  # (d, rows), from tiles above
    pulls = []
    for i, r_i in enumerate(tiles.rows):
        mirrored = mirrored_pulls[i]
        pull = None if mirrored is None else mirrored.T.contiguous()
        mirrored_pulls[i] = None
        r_i_t = r_i.T.contiguous() if need_gradient and tiles.mirrored(i, i + 1) else r_i.T
        for j in tiles.columns_beside(i):
            w = tiles.exponents(i, j).exp_()
            sums[i] = _plus(sums[i], w.sum(dim=1))
            if need_gradient:
                pull = _product(w, tiles.columns[j].T, pull)
            if tiles.mirrored(i, j):
                sums[j] = _plus(sums[j], w.sum(dim=0))
                if need_gradient:
                    mirrored_pulls[j] = _product(r_i_t, w.T, mirrored_pulls[j])
        if pull is not None:
            pulls.append(pull.addcmul_(sums[i].unsqueeze(1), r_i, value=-1))
    total = _joined(sums).sum(dtype=torch.float64)
    log_sum = total.log() if tiles.largest is None else total.log() + tiles.largest
    return log_sum, _joined(pulls).div_((total * scale).to(dtype)) if need_gradient else None


class _Tiles:
    """The exponents of all pairs, block of rows by block of columns."""

    def __init__(self, r: Tensor, c: Tensor, own_offset: int | None, symmetric: bool) -> None:
        self.own_offset, self.symmetric = own_offset, symmetric
        self.largest: Tensor | None = None
        self.row_step, self.column_step = _tile_shape(r, c, symmetric)
        c_bias = c.square().sum(dim=1).mul_(-0.5)
        r_bias = c_bias if symmetric else r.square().sum(dim=1).mul_(-0.5)
        self.rows, self.row_bias = r.split(self.row_step), r_bias.split(self.row_step)
        self.columns, self.column_bias = self.rows, self.row_bias
        if not symmetric:
            self.columns, self.column_bias = (
                c.split(self.column_step),
                c_bias.split(self.column_step),
            )
        self._biases = (c_bias,) if symmetric else (r_bias, c_bias)
        self.largest = self._shift()

    def columns_beside(self, i: int) -> range:
        return range(i if self.symmetric else 0, len(self.columns))

    def mirrored(self, i: int, j: int) -> bool:
        return self.symmetric and i < j < len(self.columns)

    def exponents(self, i: int, j: int) -> Tensor:
        tile = _product(self.rows[i], self.columns[j], self.column_bias[j])
        tile.add_(self.row_bias[i].unsqueeze(1))
        if self.largest is not None:
            # Off each exponent and not off a bias, or rounding would make the largest another.
            tile.sub_(self.largest)
        if self.own_offset is not None:
            own = self.own_offset + i * self.row_step - j * self.column_step
            if own == 0 and tile.shape[0] == tile.shape[1]:
                tile.fill_diagonal_(-math.inf)
            elif -tile.shape[0] < own < tile.shape[1]:
                tile.diagonal(own).fill_(-math.inf)
        return tile

    def _shift(self) -> Tensor | None:
        """The largest exponent, to be taken off all of them, where all could underflow.

        A GPU is not asked for the range of its exponents, for the host would have to wait.
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


def _tile_shape(r: Tensor, c: Tensor, symmetric: bool) -> tuple[int, int]:
    size = DEVICE_TILE_BYTES
    if r.device.type == "cpu":
        size = CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads()
    area = size // r.element_size()
    side = max(128, math.isqrt(area) // 64 * 64)
    if symmetric or len(r) >= side:
        return side, side
    return len(r), max(side, area // len(r))


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a.add_(b)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _product(a: Tensor, b: Tensor, plus: Tensor | None = None) -> Tensor:
    """The product a b^T, with a vector added to each of its rows or a matrix added to it."""
    if (
        a.dtype == torch.float32
        and a.shape[0] * b.numel() >= ONEDNN_WORK
        and a.is_cpu
        and _onednn()
    ):
        if plus is None or plus.dim() == 1:
            return torch.ops.mkldnn._linear_pointwise(a, b, plus, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(a, plus, b, None, "add")
    return torch.mm(a, b.T) if plus is None else torch.addmm(plus, a, b.T)


@functools.cache
def _onednn() -> bool:
    """Whether oneDNN's products can be called, which on AMD take half the time of MKL's."""
    a, b = (torch.ones(shape, dtype=torch.float32, device="cpu") for shape in ((2, 3), (3, 2)))
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        once = linear(a, b.T, b[0], "none", [], "")
        return bool((linear.binary(a, once, b.T, None, "add") == 7).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
