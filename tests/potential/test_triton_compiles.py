"""Checks of the Triton engine that need no device.

Every kernel that it can launch is compiled, and the interpreter runs test_triton.py.
HSPLUGIN_TRITON_PATHS names folders with other versions of Triton to check, each made by
``pip install --target FOLDER triton==...``; Triton 3.6 needs ``numpy<2.4`` beside it, because its
interpreter fails with newer NumPy. CI checks Triton 3.6 and the newest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from hsplugin.potential import triton_kernels as kernels  # noqa: E402
from hsplugin.potential.triton_blocks import (  # noqa: E402
    WIDEST_FUSED,
    Blocks,
    exponent_blocks,
    fused_blocks,
    padded_width,
    pull_blocks,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)
ROOT = Path(__file__).parents[2]
# The most shared memory of a thread block by compute capability, from NVIDIA's CUDA programming
# guide: 163 KiB for 8.0, but 99 KiB for 8.6 and 8.9, which run code compiled for 8.0.
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024}
FEATURES = {"bf16": "*bf16", "fp16": "*fp16", "tf32": "*fp32", "tf32x3": "*fp32"}
# The symmetric self set, rows among the columns of all ranks, a queue.
PAIRS = [(True, True), (False, True), (False, False)]


def launches(precision: str, capability: int):
    """(kernel, types of its arguments, constants, blocks) of every launch."""
    features = FEATURES[precision]
    weights = "*bf16" if precision == "bf16" else "*fp32"
    common = {
        **dict.fromkeys(("rows", "columns"), features),
        **dict.fromkeys(("row_bias", "column_bias"), "*fp32"),
        "own_offset": "i32",
        "scale": "fp32",
    }
    widths = sorted({padded_width(precision, d) for d in range(1, 600)})
    for width in widths:
        if width <= WIDEST_FUSED[precision]:
            for own in (True, False):
                blocks = fused_blocks(precision, width, capability // 10)
                yield (
                    kernels.fused_kernel,
                    {
                        **common,
                        "pull": "*fp32",
                        "totals": "*fp64",
                        **dict.fromkeys(
                            ("column_tiles", "tiles_per_split", "start", "walk"), "i32"
                        ),
                    },
                    {"D": width, "BLOCK_M": blocks.m, "BLOCK_N": blocks.n, "OWN": own},
                    blocks,
                )
    for blocks in sorted({exponent_blocks(precision, width) for width in widths}):
        constants = {"BLOCK": blocks.m, "BLOCK_D": blocks.d}
        for symmetric, own in PAIRS:
            for largest in (True, False):
                integers = ("d", "column_tiles", "tiles_per_split", "steps")
                yield (
                    kernels.reduce_kernel,
                    {
                        **common,
                        "needed": "*i32",
                        "partials": "*fp32" if largest else "*fp64",
                        **dict.fromkeys(integers, "i32"),
                    },
                    {**constants, "SYMMETRIC": symmetric, "OWN": own, "LARGEST": largest},
                    blocks,
                )
    blocks = exponent_blocks(precision, widths[-1])
    for own in (True, False):
        yield (
            kernels.weights_kernel,
            {
                **common,
                "weights": weights,
                "totals": "*fp64",
                **dict.fromkeys(("d", "i_start", "j_start", "times", "stride"), "i32"),
            },
            {"BLOCK": blocks.m, "BLOCK_D": blocks.d, "OWN": own},
            blocks,
        )
    blocks = pull_blocks(precision)
    yield (
        kernels.apply_kernel,
        {
            "weights": weights,
            "columns": features,
            "pull": "*fp32",
            "sums": "*fp64",
            **dict.fromkeys(("d", "i_start", "j_start", "height", "width", "stride"), "i32"),
        },
        {"BLOCK_M": blocks.m, "BLOCK_K": blocks.n, "BLOCK_D": blocks.d},
        blocks,
    )


def compiled(kernel, types, constants, blocks: Blocks, capability: int):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    # Properties of the arguments: torch's memory is aligned, widths are multiples of 16.
    aligned = [n for n, kind in types.items() if kind.startswith("*") or n in ("d", "stride")]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options=blocks.options(),
    )


def stack_and_registers(cubin: bytes, path: Path) -> tuple[int, int]:
    """Bytes of stack, used for spilled registers, and registers of a thread."""
    path.write_bytes(cubin)
    (cuobjdump,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump")
    command = [cuobjdump, "--dump-resource-usage", path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", output)
    assert found, output
    registers, stack, local = map(int, found.groups())
    return stack + local, registers


@pytest.mark.slow
@pytest.mark.parametrize("precision", FEATURES)
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_fits_without_spilling(capability, precision, tmp_path):
    report = []
    for kernel, types, constants, blocks in launches(precision, capability):
        constants = {**constants, "PRECISION": precision}
        binary = compiled(kernel, types, constants, blocks, capability)
        stack, registers = stack_and_registers(binary.asm["cubin"], tmp_path / "kernel.cubin")
        shared = binary.metadata.shared
        line = f"{kernel.__name__} {constants} {blocks}: {registers=} {stack=} {shared=}"
        report.append(line)
        print(line)
        assert stack == 0, line
        assert shared <= SHARED_MEMORY[capability], line
    assert len(report) > 10


def other_versions() -> list[str]:
    """Folders with other versions of Triton, of `pip install --target FOLDER triton==...`."""
    return [p for p in os.environ.get("HSPLUGIN_TRITON_PATHS", "").split(os.pathsep) if p]


def run_tests(name: str, folder: str, *options: str, **environment: str) -> None:
    """Run a file of tests in a process that finds the Triton in a folder first."""
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    environment = {
        **os.environ,
        **environment,
        "PYTHONPATH": path,
        "HSPLUGIN_TRITON_PATHS": "",
    }
    program = "import triton; print(triton.__file__)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(folder)
    tests = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    command.append(str(tests))
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", *other_versions()])
def test_values_by_the_interpreter(folder):
    run_tests("test_triton.py", folder, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("folder", other_versions())
def test_fits_without_spilling_in_other_versions(folder, capability):
    run_tests("test_triton_compiles.py", folder, "-k", f"test_fits_without_spilling[{capability}-")
