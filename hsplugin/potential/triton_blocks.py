"""Tile sizes of the Triton kernels: the largest that spill no register on compute 8.0 and 9.0.

Chosen by ahead-of-time compilation alone and not by timing. All fit the 99 KiB of shared memory of
the smallest devices that run code compiled for 8.0. Compiled by hand with Triton 3.8, none spills
on 10.0 either; on 12.0 the fused kernel of width 32 spills 8 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

# The widest features whose pull a program holds without spilling; wider ones use panels.
WIDEST_FUSED = {"bf16": 128, "fp16": 128, "tf32": 128, "tf32x3": 64}
# Sets are padded to a multiple of every tile.
PADDING = 128


class Blocks(NamedTuple):
    """Tile sizes and compile options of a kernel."""

    m: int
    n: int
    d: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Launch options; later versions of Triton fuse multiply-adds only if told to."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }


def padded_width(precision: str, d: int) -> int:
    """Width to which features of dimension d are padded: one chunk, or whole chunks."""
    if d <= WIDEST_FUSED[precision]:
        return max(32, 1 << (d - 1).bit_length())
    return -(-d // PADDING) * PADDING


def exponent_blocks(precision: str, width: int) -> Blocks:
    """Tiles of the kernels that compute exponents, reading features in chunks of d."""
    m, n, d, num_warps, num_stages = {
        "bf16": (128, 128, 64, 8, 3),
        "fp16": (128, 128, 64, 8, 3),
        "tf32": (128, 128, 32, 8, 3),
        "tf32x3": (64, 64, 32, 4, 3),
    }[precision]
    return Blocks(m, n, min(d, width), num_warps, num_stages)


def fused_blocks(precision: str, width: int, capability: int) -> Blocks:
    """Tiles of the fused kernel, for devices of this major compute capability.

    Hopper's tensor cores (capability 9) need wide tiles for full speed and leave registers for
    them.
    """
    hopper = capability == 9
    if precision in ("bf16", "fp16"):
        narrow = width == 128 and not hopper
        return Blocks(128, 32 if narrow else 64, width, 8, 2 if width == 128 else 3)
    if precision == "tf32":
        wide = width == 64 and hopper
        return Blocks(128 if hopper or width < 128 else 64, 64 if wide else 32, width, 8, 2)
    if width == 64 and not hopper:
        return Blocks(64, 16, width, 8, 2)
    return Blocks(64, 32, width, 4, 2)


def pull_blocks(precision: str) -> Blocks:
    """Tiles of the product of weights and columns: m rows by d of the pull, n columns a step."""
    return {
        "bf16": Blocks(128, 64, 128, 8, 3),
        "fp16": Blocks(128, 32, 128, 8, 3),
        "tf32": Blocks(128, 32, 128, 8, 3),
        "tf32x3": Blocks(128, 32, 64, 8, 3),
    }[precision]
