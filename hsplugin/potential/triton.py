r"""The potential by Triton kernels on CUDA, in O(N d) memory.

Three algorithms. None uses atomic additions, so each gives the same bits in every run, whether or
not torch.use_deterministic_algorithms is on:

- *Forward only* (metrics, no gradient), any d: one sum per program over tiles of pairs; for the
  self set only tiles with I <= J.
- *Fused*, d up to 128, or 64 in float32: a program holds a strip of rows and its pull and walks
  over the columns, as attention does over keys. A launch covers at most 65536 columns, because
  tensor cores round each addition to the pull towards zero, which accumulates.
- *Panels*, larger d: the weights of at most 4096 x 4096 pairs are stored, then multiplied with the
  columns and, transposed, with the rows. In the self set, weights outside the diagonal panels are
  computed once for both rows.

========  ==============================  ========================================================
features  exponents                       gradient
========  ==============================  ========================================================
float32   tf32x3: float32 accuracy        tf32x3: float32 accuracy
float32,  those of the features rounded   weights and features rounded to tf32, 2^-11
tf32      to tf32, to float32 accuracy
bfloat16  exact products, float32 sums    weights rounded to bfloat16, 2^-8
float16   exact products, float32 sums    weights rounded to tf32, 2^-11: float16 lacks the range
========  ==============================  ========================================================

tf32 is used where torch's setting for matrix products permits it. float32 features are centred
first: distances do not change, but products and their rounding errors get smaller. Half-precision
features are not centred, because that would round them: their exponents have an error of about
2^-22 t |x|^2, proportionally more for d above 128, however close together they lie. Weights are
summed in float32 within a tile and in float64 over tiles.

If 4 t max|x|^2 is so large that weights would underflow, the largest exponent is computed first and
divided out, at the cost of one more forward. The device decides this; the host never waits for it.
For 4 t max|x|^2 above about 10^9, exponents are rounded by more than a weight can represent, and
the value may be infinite where the tiled engine's is finite.

Memory beyond the features: a padded copy of each set, the pull in float32 (for sets below 65536
rows, up to as many copies as fill 65536 rows), and for panels 64 MiB of weights; a second pull for
more than 65536 columns, or where the pull must be cut out of the padding.

Predictions, *unmeasured*: value and gradient on one H100 at its ceilings of 800 TFLOP/s (bfloat16),
400 (tf32; tf32x3 needs three products for one), 3.6e12 exponentials and 3 TB per second. How much
of this overlaps and which share of the ceilings is reached must be measured on a device, and so
must whether torch's flex_attention, which computes the same sums, is faster.

============  ========  ======  ==============  ============  ============  ======================
N x d         features  way     products        exponentials  weights r/w   time at the ceilings
============  ========  ======  ==============  ============  ============  ======================
65536 x 128   bfloat16  fused   2.2e12 flop     4.3e9         none          2.7 ms + 1.2 ms
65536 x 128   tf32      fused   2.2e12 flop     4.3e9         none          5.5 ms + 1.2 ms
65536 x 128   float32   panels  3 x 1.7e12      2.3e9         27 GB         12.8 ms + 9 ms
16384 x 2048  bfloat16  panels  1.8e12 flop     1.7e8         1 GB          2.2 ms + 0.3 ms
16384 x 2048  tf32      panels  1.8e12 flop     1.7e8         2 GB          4.5 ms + 0.7 ms
16384 x 2048  float32   panels  3 x 1.8e12      1.7e8         2 GB          13.4 ms + 0.7 ms
2^20 x 128    bfloat16  fused   5.6e14 flop     1.1e12        none          0.70 s + 0.31 s
2^20 x 128    tf32      fused   5.6e14 flop     1.1e12        none          1.41 s + 0.31 s
2^20 x 128    float32   panels  3 x 4.2e14      5.5e11        6.6 TB        3.2 s + 2.2 s
============  ========  ======  ==============  ============  ============  ======================

Why the fused kernel does not use symmetry: it would save a quarter of the products and half of the
exponentials, but the mirrored pull of a tile must be added to rows of other programs, N^2 d / 2M
numbers for strips of M rows. At 65536 x 128, products + exponentials + traffic at the ceilings,
with the optimistic assumption that additions in L2 are as fast as reads, 5.5 TB/s:

====================  ===================  ===================  ==================================
way                   bfloat16             tf32                 float32
====================  ===================  ===================  ==================================
fused                 2.7 + 1.2 ms         5.5 + 1.2 ms         16.5 + 1.2 ms; spills registers
symmetric, atomics    2.1 + 0.6 + 1.6 ms   4.1 + 0.6 + 3.1 ms   12.4 + 0.6 + 3.1 ms, not
                                                                deterministic
panels                2.1 + 0.6 + 4.5 ms   4.1 + 0.6 + 9 ms     12.8 + 0.6 + 9 ms, the traffic at
                                                                best hidden behind products
====================  ===================  ===================  ==================================

Without atomics, each launch could add one mirrored tile to each strip. At d = 128 that is 34 GB of
traffic in 256 launches, more than the weights of the panels. Panels are symmetric and
deterministic, so float32 uses them.
"""

from __future__ import annotations

import contextlib
import functools
import math

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
from hsplugin.potential.triton_blocks import (
    PADDING,
    WIDEST_FUSED,
    exponent_blocks,
    fused_blocks,
    padded_width,
    pull_blocks,
)

# Weights with at least this exponent (to base two) lose nothing to underflow.
SMALLEST_EXPONENT = -110.0
# Rows and columns of a panel of weights, enough to keep every multiprocessor busy.
PANEL = 4096
# Columns are split until rows times splits reach this number.
SPLIT_ROWS = 65536
# Most columns a pull is summed over in tensor cores, which round each addition towards zero.
LONGEST_WALK = 65536
# Norms are computed in blocks of this many numbers, because torch first copies them to float64.
NORM_SIZE = 2**22
LOG2_E = math.log2(math.e)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def available(features: Tensor) -> bool:
    """Whether this engine can take these features on their device.

    It takes float32, bfloat16 and float16 on NVIDIA devices of compute capability 8.0 and above,
    and anywhere under Triton's interpreter (``TRITON_INTERPRET=1``).
    """
    if features.dtype not in DTYPES:
        return False
    if interpreted():
        return True
    if not features.is_cuda or torch.version.hip is not None:
        return False
    return _capability(features.device) >= 8 and _compiles()


@functools.cache
def _compiles() -> bool:
    """Whether Triton can launch kernels; it needs a C compiler, which may be missing."""
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception:
        return False
    return True


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8


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
        half = shift / 2  # from both biases, so that (i, j) and (j, i) are rounded alike
        pairs.row_bias = pairs.row_bias - half
        pairs.column_bias = pairs.column_bias - half
        if not need_gradient:
            total, pull = pairs.reduce().sum(), None
        elif pairs.width <= WIDEST_FUSED[pairs.precision]:
            total, pull = pairs.fused()
        else:
            total, pull = pairs.panels()
        total = total + pairs.nan
        if pull is not None:
            pull = pull[: rows.shape[0], : rows.shape[1]].contiguous().div_(total)
        log_mean = (total / (len(rows) * len(columns))).log() + shift.double() / LOG2_E
        return log_mean, pull


class _Pairs:
    """Both sets in the form kernels read: centred, rounded, padded, with biases of exponents."""

    def __init__(self, rows: Tensor, columns: Tensor, t: float, own_offset: int | None) -> None:
        self.precision = precision(rows.dtype)
        if interpreted() and rows.dtype == torch.bfloat16:
            # The interpreter cannot multiply bfloat16, so use the same numbers in float32.
            itself = rows is columns
            rows = rows.float()
            columns = rows if itself else columns.float()
        self.own = own_offset is not None
        self.own_offset = own_offset or 0
        self.symmetric = own_offset == 0 and rows is columns
        # Rounded as in the kernels, so that scale and biases use the same t.
        self.scale = torch.tensor(2 * t * LOG2_E, dtype=torch.float32, device="cpu").item()
        self.width = padded_width(self.precision, rows.shape[1])
        centre = columns.mean(dim=0) if self.precision in ("tf32", "tf32x3") else None
        self.columns, self.column_bias = self._prepared(columns, centre)
        self.rows, self.row_bias = self.columns, self.column_bias
        if not self.symmetric:
            self.rows, self.row_bias = self._prepared(rows, centre)
        biases = torch.cat([self.row_bias[: len(rows)], self.column_bias[: len(columns)]])
        # Features that are not finite have biases that are not finite.
        self.nan = 0 * biases.sum(dtype=torch.float64)
        # Two points are at most the sum of their radii apart.
        self.shift_needed = ~(4 * biases.min() > SMALLEST_EXPONENT)

    def _prepared(self, features: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
        n, d = features.shape
        padded = features.new_zeros(-(-n // PADDING) * PADDING, self.width)
        if centre is None:
            padded[:n, :d] = features
        else:
            torch.sub(features, centre, out=padded[:n, :d])
        bias = padded.new_full((len(padded),), -torch.inf, dtype=torch.float32)
        step = max(1, NORM_SIZE // self.width)
        for block, block_bias in zip(padded[:n].split(step), bias.split(step), strict=False):
            if self.precision == "tf32":
                # Adding and subtracting (1 + 2^13) x keeps the upper 11 of 24 bits.
                multiple = block * (1 + 2**13)
                block.sub_(multiple).add_(multiple)
            radius = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
            block_bias[: len(block)] = radius.square_().mul_(-self.scale / 2)
        return padded, bias

    def _operands(self) -> tuple[Tensor, ...]:
        return self.rows, self.columns, self.row_bias, self.column_bias

    def shift(self) -> Tensor:
        """The largest exponent if weights would underflow otherwise, else 0; a device scalar."""
        largest = self.reduce(largest=True).max()
        return largest.masked_fill_(~self.shift_needed, 0)

    def reduce(self, *, largest: bool = False) -> Tensor:
        """The sum of weights, or the largest exponent, of each program."""
        blocks = exponent_blocks(self.precision, self.width)
        strips = len(self.rows) // blocks.m
        column_tiles = len(self.columns) // blocks.n
        steps = column_tiles // 2 + 1 if self.symmetric else column_tiles
        splits, tiles_per_split = _splits(4 * SPLIT_ROWS, len(self.rows), steps)
        partials = self.rows.new_empty(
            splits * strips, dtype=torch.float32 if largest else torch.float64
        )
        kernels.reduce_kernel[(strips, splits)](
            *self._operands(),
            self.shift_needed.int(),
            partials,
            self.own_offset,
            self.scale,
            self.width,
            column_tiles,
            tiles_per_split,
            steps,
            BLOCK=blocks.m,
            BLOCK_D=blocks.d,
            OWN=self.own,
            SYMMETRIC=self.symmetric,
            LARGEST=largest,
            PRECISION=self.precision,
            **blocks.options(),
        )
        return partials

    def fused(self) -> tuple[Tensor, Tensor]:
        """Sum of the weights, and the pull times it."""
        blocks = fused_blocks(self.precision, self.width, _capability(self.rows.device))
        n = len(self.rows)
        column_tiles = len(self.columns) // blocks.n
        splits, tiles_per_split = _splits(SPLIT_ROWS, n, column_tiles)
        walk = LONGEST_WALK // blocks.n

        def walked(start: int) -> tuple[Tensor, Tensor]:
            pull = self.rows.new_empty(splits, n, self.width, dtype=torch.float32)
            totals = self.rows.new_empty(splits, n, dtype=torch.float64)
            kernels.fused_kernel[(n // blocks.m, splits)](
                *self._operands(),
                pull,
                totals,
                self.own_offset,
                self.scale,
                column_tiles,
                tiles_per_split,
                start,
                walk,
                D=self.width,
                BLOCK_M=blocks.m,
                BLOCK_N=blocks.n,
                OWN=self.own,
                PRECISION=self.precision,
                **blocks.options(),
            )
            return totals.sum(), pull[0] if splits == 1 else pull.sum(0)

        total, pull = walked(0)
        for start in range(walk, tiles_per_split, walk):
            more, part = walked(start)
            total += more
            pull += part
        return total, pull

    def panels(self) -> tuple[Tensor, Tensor]:
        """Sum of the weights, and the pull times it, from stored panels of weights."""
        n, m = len(self.rows), len(self.columns)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        weights = self.rows.new_empty(min(PANEL, n), min(PANEL, m), dtype=dtype)
        blocks = exponent_blocks(self.precision, self.width)
        tiles = (weights.shape[0] // blocks.m) * (weights.shape[1] // blocks.n)
        totals = self.rows.new_zeros(tiles, dtype=torch.float64)
        pull = self.rows.new_zeros(n, self.width, dtype=torch.float32)
        sums = self.rows.new_zeros(n, dtype=torch.float64)
        for i in range(0, n, PANEL):
            height = min(PANEL, n - i)
            for j in range(i if self.symmetric else 0, m, PANEL):
                width = min(PANEL, m - j)
                mirrored = self.symmetric and i != j
                kernels.weights_kernel[(width // blocks.n, height // blocks.m)](
                    *self._operands(),
                    weights,
                    totals,
                    self.own_offset,
                    self.scale,
                    self.width,
                    i,
                    j,
                    2 if mirrored else 1,
                    weights.stride(0),
                    BLOCK=blocks.m,
                    BLOCK_D=blocks.d,
                    OWN=self.own,
                    PRECISION=self.precision,
                    **blocks.options(),
                )
                self._apply_weights(weights, pull, sums, i, j, height, width, mirrored)
        return totals.sum(), pull.addcmul_(self.rows, sums.float().unsqueeze(1), value=-1)

    def _apply_weights(
        self,
        weights: Tensor,
        pull: Tensor,
        sums: Tensor,
        i: int,
        j: int,
        height: int,
        width: int,
        mirrored: bool,
    ) -> None:
        blocks = pull_blocks(self.precision)
        ways = 2 if mirrored else 1
        kernels.apply_kernel[(self.width // blocks.d, height // blocks.m, ways)](
            weights,
            self.columns,
            pull,
            sums,
            self.width,
            i,
            j,
            height,
            width,
            weights.stride(0),
            BLOCK_M=blocks.m,
            BLOCK_K=blocks.n,
            BLOCK_D=blocks.d,
            PRECISION=self.precision,
            **blocks.options(),
        )


def _splits(target: int, rows: int, tiles: int) -> tuple[int, int]:
    """Number of parts into which a strip's walk is split, and tiles per part."""
    splits = min(tiles, max(1, target // rows))
    tiles_per_split = -(-tiles // splits)
    return -(-tiles // tiles_per_split), tiles_per_split
