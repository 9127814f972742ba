r"""The potential by fused Triton kernels on CUDA, in O(N d) memory.

Three ways through the pairs, all over square tiles that never leave the chip or, for large d, only
in panels of bounded size:

- *Forward only* (metrics, no gradient): one sum a program over tiles I <= J of the self set.
- *Fused*, up to d = 256 (128 for float32): a program holds a strip of rows and its pull, and walks
  over the columns as attention does over keys. It has no use for symmetry, which would cost
  atomic additions of N^2 d / BLOCK floats, and so is deterministic.
- *Panels*, for larger d: the weights of a panel of at most 4096 x 4096 pairs are written down,
  then multiplied with the columns and, transposed, with the rows: every weight of the self set
  outside the diagonal panels is computed once. No atomic additions either.

Every way is deterministic, run to run, whether or not torch.use_deterministic_algorithms is on.

Precision: weights are summed in float32 within a tile and in float64 over tiles.

========  ============================  ==========================================================
features  exponents from                gradient from
========  ============================  ==========================================================
float32   tf32x3, centred features      tf32x3 products: float32 accuracy
float32   tf32, where torch's setting   features and weights rounded to tf32 (2^-11). The value
          for matrix products says so   is that of the rounded features, to float32 accuracy
bfloat16  exact products in float32     weights rounded to bfloat16 (2^-8)
float16   exact products in float32     weights rounded to tf32 (2^-11), as float16 lacks the range
========  ============================  ==========================================================

Half-precision features are not centred, for that would round them: their exponents are exact to
about 2^-22 t |x|^2, however close together the features lie. On the sphere that is float32
accuracy for usual t.

Where 4 t max|x|^2 is large enough for weights to underflow, the largest exponent is found first and
divided out. The device decides so by itself; the host never waits.

Memory beyond the features: a padded copy of each set, the pull in float32 (times the splits of the
columns, which only small sets have: at most :data:`SPLIT_ROWS` rows altogether), and for panels
64 MiB of weights.

Predictions, *unmeasured*, for one H100 at 800 TFLOP/s (bfloat16), 400 (tf32) and a third of that
(tf32x3), with 3.6e12 exponentials a second, forward and gradient:

==============  =======  ==========================  =====================================
N x d           way      flop, exponentials          time at the ceilings
==============  =======  ==========================  =====================================
65536 x 128     fused    2.2e12, 4.3e9               2.7 ms bf16, 5.5 tf32, 16.5 tf32x3
16384 x 2048    panels   1.8e12, 1.7e8               2.2 ms bf16, 4.5 tf32, 13.4 tf32x3
1048576 x 128   fused    5.6e14, 1.1e12              0.70 s bf16, 1.4 tf32, 4.2 tf32x3
==============  =======  ==========================  =====================================
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
except ImportError as error:
    raise ImportError(
        "backend='triton' needs Triton, which comes with torch's CUDA builds for Linux; "
        "pip install triton, or use backend='auto'"
    ) from error

from hsplugin.potential import triton_kernels as kernels

# Weights whose exponent (to base two) is at least this lose nothing to underflow.
SMALLEST_EXPONENT = -110.0
# Rows and columns of a panel of weights: its products keep every multiprocessor busy.
PANEL = 4096
# Columns are split until so many rows times splits are under way.
SPLIT_ROWS = 65536
LOG2_E = math.log2(math.e)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """Tile sizes of a kernel, and how it is compiled."""

    m: int
    n: int
    d: int
    num_warps: int
    num_stages: int


def available(features: Tensor) -> bool:
    """Whether this engine takes such features here.

    It takes float32, bfloat16 and float16 on NVIDIA devices of compute capability 8.0 and above,
    and anywhere under Triton's interpreter (``TRITON_INTERPRET=1``).
    """
    if features.dtype not in DTYPES:
        return False
    if interpreted():
        return True
    if not features.is_cuda or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(features.device) >= (8, 0)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, decided when they were defined."""
    return not isinstance(kernels.fused_kernel, triton.JITFunction)


def precision(dtype: torch.dtype) -> str:
    """How products are computed: "bf16", "fp16", "tf32" or "tf32x3".

    float32 features are multiplied to float32 accuracy, "tf32x3", unless torch's own setting for
    matrix products (torch.set_float32_matmul_precision, fp32_precision, allow_tf32) permits tf32.
    """
    if dtype != torch.float32:
        return "bf16" if dtype == torch.bfloat16 else "fp16"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return "tf32" if matmul.fp32_precision == "tf32" else "tf32x3"
    return "tf32" if matmul.allow_tf32 else "tf32x3"


def accumulate(
    rows: Tensor, columns: Tensor, t: float, *, own_offset: int | None, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum the weights of all pairs; see :func:`hsplugin.potential.reference.accumulate`."""
    device = torch.cuda.device(rows.device) if rows.is_cuda else contextlib.nullcontext()
    with device:
        pairs = _Pairs(rows, columns, t, own_offset)
        shift = pairs.shift()
        pairs.row_bias = pairs.row_bias - shift
        if not need_gradient:
            total, pull = pairs.reduce().sum(), None
        elif pairs.fits:
            total, pull = pairs.fused()
        else:
            total, pull = pairs.panels()
        if pull is not None:
            pull = pull[: rows.shape[0], : rows.shape[1]].div_(total)
        return total.log() + shift.double() / LOG2_E + pairs.nan, pull


class _Pairs:
    """Both sets as the kernels read them: centred, rounded, padded, with the exponents' biases."""

    def __init__(self, rows: Tensor, columns: Tensor, t: float, own_offset: int | None) -> None:
        self.precision = precision(rows.dtype)
        if interpreted() and rows.dtype == torch.bfloat16:
            # The interpreter cannot multiply bfloat16; the same numbers in float32 stand in.
            itself = rows is columns
            rows = rows.float()
            columns = rows if itself else columns.float()
        self.own = own_offset is not None
        self.own_offset = own_offset or 0
        self.symmetric = own_offset == 0 and rows is columns
        # The scale as the kernels get it, so that scale and biases agree on one t.
        self.scale = torch.tensor(2 * t * LOG2_E, dtype=torch.float32).item()
        d = rows.shape[1]
        self.fits = d <= (256 if self.precision in ("bf16", "fp16") else 128)
        self.width = max(16, triton.next_power_of_2(d)) if self.fits else _up(d, 128)
        centre = columns.mean(dim=0) if self.precision in ("tf32", "tf32x3") else None
        self.columns, self.column_bias = self._prepared(columns, centre)
        self.rows, self.row_bias = self.columns, self.column_bias
        if not self.symmetric:
            self.rows, self.row_bias = self._prepared(rows, centre)
        biases = torch.cat([self.row_bias[: len(rows)], self.column_bias[: len(columns)]])
        # Not finite features have not finite biases, whatever becomes of their pairs.
        self.nan = 0 * biases.sum(dtype=torch.float64)
        # Points are no further apart than both radii together, here at most twice the larger.
        self.shift_needed = ~(4 * biases.min() > SMALLEST_EXPONENT)

    def _prepared(self, features: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
        n, d = features.shape
        padded = features.new_zeros(_up(n, 128), self.width)
        if centre is None:
            padded[:n, :d] = features
        else:
            torch.sub(features, centre, out=padded[:n, :d])
            if self.precision == "tf32":
                bits = padded.view(torch.int32)
                bits.add_(0x1000).bitwise_and_(-0x2000)
        radius = torch.linalg.vector_norm(padded[:n], dim=1, dtype=torch.float64)
        bias = padded.new_full((len(padded),), -torch.inf, dtype=torch.float32)
        bias[:n] = radius.square_().mul_(-self.scale / 2)
        return padded, bias

    def shift(self) -> Tensor:
        """The largest exponent where weights would underflow without, else 0; a device scalar."""
        largest = self.reduce(largest=True).max()
        return torch.where(self.shift_needed, largest, 0)

    def reduce(self, *, largest: bool = False) -> Tensor:
        """Sums of the weights, or the largest exponents, one of each program."""
        blocks = reduce_blocks(self.precision)
        strips = len(self.rows) // blocks.m
        column_tiles = len(self.columns) // blocks.n
        steps = column_tiles // 2 + 1 if self.symmetric else column_tiles
        splits, tiles_per_split = _splits(4 * SPLIT_ROWS, len(self.rows), steps)
        partials = self.rows.new_empty(
            splits * strips, dtype=torch.float32 if largest else torch.float64
        )
        kernels.reduce_kernel[(strips, splits)](
            self.rows,
            self.columns,
            self.row_bias,
            self.column_bias,
            self.shift_needed.int(),
            partials,
            self.own_offset,
            self.scale,
            self.width,
            column_tiles,
            tiles_per_split,
            steps,
            BLOCK=blocks.m,
            BLOCK_D=min(blocks.d, self.width),
            OWN=self.own,
            SYMMETRIC=self.symmetric,
            LARGEST=largest,
            PRECISION=self.precision,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        return partials

    def fused(self) -> tuple[Tensor, Tensor]:
        """Sum of the weights, and the pull times it."""
        blocks = fused_blocks(self.precision, self.width)
        n = len(self.rows)
        column_tiles = len(self.columns) // blocks.n
        splits, tiles_per_split = _splits(SPLIT_ROWS, n, column_tiles)
        pull = self.rows.new_empty(splits, n, self.width, dtype=torch.float32)
        totals = self.rows.new_empty(splits, n, dtype=torch.float64)
        kernels.fused_kernel[(n // blocks.m, splits)](
            self.rows,
            self.columns,
            self.row_bias,
            self.column_bias,
            pull,
            totals,
            self.own_offset,
            self.scale,
            column_tiles,
            tiles_per_split,
            D=self.width,
            BLOCK_M=blocks.m,
            BLOCK_N=blocks.n,
            OWN=self.own,
            PRECISION=self.precision,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        return totals.sum(), pull[0] if splits == 1 else pull.sum(0)

    def panels(self) -> tuple[Tensor, Tensor]:
        """Sum of the weights, and the pull times it, by panels of weights written down."""
        n, m = len(self.rows), len(self.columns)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        weights = self.rows.new_empty(min(PANEL, n), min(PANEL, m), dtype=dtype)
        pull = self.rows.new_zeros(n, self.width, dtype=torch.float32)
        sums = self.rows.new_zeros(n, dtype=torch.float64)
        total = self.rows.new_zeros((), dtype=torch.float64)
        for i in range(0, n, PANEL):
            height = min(PANEL, n - i)
            for j in range(i if self.symmetric else 0, m, PANEL):
                width = min(PANEL, m - j)
                mirrored = self.symmetric and i != j
                partials = self._write_weights(weights, i, j, height, width)
                total += partials.sum() * (2 if mirrored else 1)
                self._apply_weights(weights, pull, sums, i, j, height, width, transposed=False)
                if mirrored:
                    self._apply_weights(weights, pull, sums, j, i, width, height, transposed=True)
        return total, pull.sub_(self.rows.float().mul_(sums.float().unsqueeze(1)))

    def _write_weights(self, weights: Tensor, i: int, j: int, height: int, width: int) -> Tensor:
        blocks = reduce_blocks(self.precision)
        grid = (width // blocks.n, height // blocks.m)
        partials = weights.new_empty(grid[0] * grid[1], dtype=torch.float64)
        kernels.weights_kernel[grid](
            self.rows,
            self.columns,
            self.row_bias,
            self.column_bias,
            weights,
            partials,
            self.own_offset,
            self.scale,
            self.width,
            i,
            j,
            weights.stride(0),
            BLOCK=blocks.m,
            BLOCK_D=blocks.d,
            OWN=self.own,
            PRECISION=self.precision,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        return partials

    def _apply_weights(
        self,
        weights: Tensor,
        pull: Tensor,
        sums: Tensor,
        i: int,
        j: int,
        height: int,
        width: int,
        *,
        transposed: bool,
    ) -> None:
        blocks = apply_blocks(self.precision)
        kernels.apply_kernel[(self.width // blocks.d, height // blocks.m)](
            weights,
            self.columns,
            pull,
            sums,
            self.width,
            i,
            j,
            width,
            weights.stride(0),
            BLOCK_M=blocks.m,
            BLOCK_K=blocks.n,
            BLOCK_D=blocks.d,
            TRANSPOSED=transposed,
            PRECISION=self.precision,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )


def reduce_blocks(precision: str) -> Blocks:
    """Tiles of the kernels that compute exponents alone."""
    if precision in ("bf16", "fp16"):
        return Blocks(128, 128, 64, 8, 3)
    return Blocks(128, 128, 32, 8, 3) if precision == "tf32" else Blocks(64, 64, 32, 4, 3)


def fused_blocks(precision: str, width: int) -> Blocks:
    """Tiles of the fused kernel."""
    if precision in ("bf16", "fp16"):
        return Blocks(128, 64, width, 8, 3 if width <= 128 else 2)
    return Blocks(64, 32, width, 4, 2)


def apply_blocks(precision: str) -> Blocks:
    """Tiles of the product of weights and columns, m rows by d of the pull, n columns a step."""
    if precision == "bf16":
        return Blocks(128, 64, 128, 8, 3)
    return Blocks(64, 32, 64, 4, 3) if precision == "tf32x3" else Blocks(128, 32, 128, 8, 3)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _splits(target: int, rows: int, tiles: int) -> tuple[int, int]:
    """Into how many walks of how many tiles a strip's walk is split."""
    splits = min(tiles, max(1, target // rows))
    tiles_per_split = -(-tiles // splits)
    return -(-tiles // tiles_per_split), tiles_per_split
