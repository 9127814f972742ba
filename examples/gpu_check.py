"""One call on a machine with a GPU: check the CUDA path, time it beside its peers, write it down.

In order, until the minutes are over: the tests of the Triton engine on the device; the rates that
the device reaches in copies and matrix products; value and gradient by each contender, compared
with float64; one million rows. Whatever fails or finds no time is noted and the rest goes on.

    python examples/gpu_check.py --minutes 9 --out gpu_check

writes gpu_check.csv, summary.md and tests.txt. For the engines' tests it needs pytest and
hypothesis; flex_attention needs a C compiler; KeOps takes part where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsplugin.bench.contenders import CONTENDERS, exact
from hsplugin.bench.report import machine
from hsplugin.potential import log_mean_potential

ROOT = Path(__file__).parents[1]
T = 2.0
# Dtype of the features, and torch's setting for products of float32.
PRECISIONS = {
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
# Rows that differ, the others being copies of them, so that float64 knows the value of any number.
DISTINCT = 8192
MODES = ("forward", "forward+backward")
FIRST, LAST = ("triton", "attention", "sdpa"), ("tiled", "keops")


@dataclass
class Row:
    """One line of the results; what was not measured stays empty."""

    what: str
    n: int | None = None
    d: int | None = None
    precision: str = ""
    mode: str = ""
    median_ms: float | None = None
    rounds: int | None = None
    peak_mib: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    rate: float | None = None
    unit: str = ""
    note: str = ""


@dataclass
class Clock:
    """How much time is left."""

    end: float

    def left(self) -> float:
        """Seconds left."""
        return self.end - time.perf_counter()


def sdpa(x: Tensor, t: float) -> Tensor:
    """One forward of torch's own fused attention, for its time; its value is not the potential."""
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    qkv = x.detach()[None, None]
    with sdpa_kernel(fused):
        attended = torch.nn.functional.scaled_dot_product_attention(qkv, qkv, qkv, scale=2 * t)
    return attended.sum()


def base_rows(n: int, d: int) -> Tensor:
    """The unit rows (m, d) of which n rows are copies; m divides n."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(math.gcd(n, DISTINCT), d, generator=generator)
    return torch.nn.functional.normalize(x, dim=1)


def expected(base: Tensor, n: int) -> tuple[float, Tensor]:
    r"""Potential of n / m copies of base (m, d), and its gradient by the first m rows, in float64.

    Of r copies each, :math:`r^2` times as many pairs of different points and
    :math:`m r (r - 1) / 2` of equal ones, which weigh 1 and have no gradient.
    """
    m, copies = len(base), n // len(base)
    leaf = base.double().requires_grad_()
    log_mean_potential(leaf, T, backend="tiled").backward()
    different = math.exp(exact(base, T)) * (m * (m - 1) / 2)
    total = copies**2 * different + m * copies * (copies - 1) / 2
    assert leaf.grad is not None
    return math.log(total / (n * (n - 1) / 2)), leaf.grad * (copies * different / total)


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Seconds of one call, its work on the device included."""
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def medians(step: Callable[[], object], device: str, seconds: float) -> tuple[float, int]:
    """Median of the milliseconds of some calls after one to warm up, and how many they were."""
    seconds_of(step, device)
    spent = [seconds_of(step, device)]
    while len(spent) < 200 and (sum(spent) < seconds or (len(spent) < 3 and spent[0] < 5)):
        spent.append(seconds_of(step, device))
    return 1e3 * statistics.median(spent), len(spent)


def ceiling(name: str, device: str, seconds: float) -> Row:
    """What the device reaches in a copy, in TB/s read and written, or a product, in TFLOP/s."""
    side = 8192 if device == "cuda" else 256
    if name == "copy":
        a = torch.randn(8 * side, side, device=device)
        b = torch.empty_like(a)
        ms, rounds = medians(lambda: b.copy_(a), device, seconds)
        return Row("copy", median_ms=ms, rounds=rounds, rate=2e-9 * a.nbytes / ms, unit="TB/s")
    dtype, setting = PRECISIONS[name]
    torch.set_float32_matmul_precision(setting)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    ms, rounds = medians(lambda: a @ b, device, seconds)
    rate = 2e-9 * side**3 / ms
    return Row("product", precision=name, median_ms=ms, rounds=rounds, rate=rate, unit="TFLOP/s")


def measured(name: str, row: Row, device: str, seconds: float) -> Row:
    """Time, memory and errors of one contender."""
    dtype, setting = PRECISIONS[row.precision]
    torch.set_float32_matmul_precision(setting)
    assert row.n is not None and row.d is not None
    base = base_rows(row.n, row.d).to(device, dtype)
    backward = row.mode == MODES[1]
    x = base.repeat(row.n // len(base), 1).requires_grad_(backward)
    function = sdpa if name == "sdpa" else CONTENDERS[name].function

    def step() -> Tensor:
        x.grad = None
        with torch.set_grad_enabled(backward):
            value = function(x, T)
        if backward:
            value.backward()
        return value

    value = float(step())
    if name != "sdpa":
        exact_value, exact_gradient = expected(base, row.n)
        row.value_error = abs(value - exact_value)
        if x.grad is not None:
            error = x.grad[: len(base)].double() - exact_gradient
            row.gradient_error = float(error.norm() / exact_gradient.norm())
        del exact_gradient
    x.grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        row.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    row.median_ms, row.rounds = medians(step, device, seconds)
    return row


def tests(out: Path, limit: float) -> Row:
    """Run the tests of the Triton engine on what it finds here."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider"]
    command += [f"tests/potential/test_{name}.py" for name in ("triton", "engines")]
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    log = out / "tests.txt"
    try:
        with log.open("w") as file:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=limit
            )
    except subprocess.TimeoutExpired:
        return Row("tests", note=f"not done after {limit:.0f} s; see {log}")
    last = ([line for line in log.read_text().splitlines() if line.strip()] or ["no output"])[-1]
    return Row("tests", note=f"exit {done.returncode}: {last.strip('= ')}")


def kept(row: Row, work: Callable[[], Row], rows: list[Row], args: argparse.Namespace) -> None:
    """Add what the work returns to the results and files, or else why it returned nothing."""
    if args.clock.left() <= 0:
        row.note = "no time left"
    else:
        try:
            row = work()
        except Exception as error:  # whatever it is, the rest shall still be measured
            text = str(error).strip() or "failed"
            row.note = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
    rows.append(row)
    print(*(v for v in asdict(row).values() if v not in (None, "")), flush=True)
    with (args.out / "gpu_check.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    (args.out / "summary.md").write_text(summary(rows, args.device))
    if args.device == "cuda":
        torch.cuda.empty_cache()


def summary(rows: list[Row], device: str) -> str:
    """What was measured, beside what it should be."""
    lines = ["# Check of the CUDA path", "", machine(device), ""]
    lines += [f"- {r.what}: {r.note}" for r in rows if r.what == "tests"]
    lines += [
        f"- {r.what} {r.precision}: {r.rate:.3g} {r.unit}" if r.rate else f"- {r.what}: {r.note}"
        for r in rows
        if r.what in ("copy", "product")
    ]
    lines += ["", "| rows | features | mode | by | ms | MiB | error | gradient | of the products |"]
    lines += ["|---|---|---|---|---:|---:|---:|---:|---:|"]
    rates = {r.precision: r.rate for r in rows if r.what == "product" and r.rate}
    for r in rows:
        if r.n is None or r.d is None:
            continue
        start = f"| {r.n} x {r.d} | {r.precision} | {r.mode} | {r.what} "
        if r.median_ms is None:
            lines.append(f"{start}| {r.note.replace('|', '/')} | | | | |")
            continue
        products = (3 if r.mode == MODES[1] else 1) * r.n**2 * r.d
        rate = rates.get(r.precision)
        share = f"{products * 1e-9 / rate / r.median_ms:.0%}" if rate else ""
        cells = [f"{r.median_ms:.3f}", _text(r.peak_mib, ".0f"), _text(r.value_error, ".1e")]
        cells += [_text(r.gradient_error, ".1e"), share]
        lines.append(f"{start}| {' | '.join(cells)} |")
    lines += [
        "",
        "Of the products: the time of N^2 d flop, three times that with the gradient, at ",
    ]
    lines[-1] += "the measured rate of the precision, over the time taken."
    lines += ["", *(f"- {line}" for line in _targets(rows)), ""]
    return "\n".join(lines)


def _targets(rows: list[Row]) -> list[str]:
    """Value and gradient over one forward of fused attention, where both were measured."""
    times = {(r.what, r.n, r.d, r.precision, r.mode): r.median_ms for r in rows if r.median_ms}
    lines = []
    for (what, n, d, precision, mode), ms in times.items():
        if what != "triton" or mode != MODES[1]:
            continue
        for peer in ("attention", "sdpa"):
            own = times.get((peer, n, d, precision, MODES[0]))
            if own:
                lines.append(f"{n} x {d} {precision}: {ms / own:.2f} of one forward of {peer}")
    return lines


def _text(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def main() -> None:
    """Run everything there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["65536x128", "16384x2048"], metavar="NxD")
    parser.add_argument("--large", nargs="*", default=["1048576x128"], metavar="NxD")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing is begun")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repeating a measurement")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--contenders", nargs="+", default=FIRST + LAST, choices=FIRST + LAST)
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu with small --sizes tries the script")
    args.clock = Clock(time.perf_counter() + 60 * args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    if not args.no_tests:
        limit = 60 * args.minutes / 2
        kept(Row("tests"), functools.partial(tests, args.out, limit), rows, args)
    for name in ("copy", *PRECISIONS):
        row = Row("copy") if name == "copy" else Row("product", precision=name)
        work = functools.partial(ceiling, name, args.device, args.seconds)
        kept(row, work, rows, args)
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    large = [tuple(map(int, size.split("x"))) for size in args.large]
    plan = [(name, size) for size in sizes for name in FIRST]
    plan += [("triton", size) for size in large]
    plan += [(name, size) for size in sizes for name in LAST]
    for name, (n, d) in plan:
        if name not in args.contenders:
            continue
        for precision in PRECISIONS:
            for mode in MODES[:1] if name == "sdpa" else reversed(MODES):
                row = Row(name, n, d, precision, mode)
                work = functools.partial(measured, name, row, args.device, args.seconds)
                kept(row, work, rows, args)
    print(f"\n{summary(rows, args.device)}\nwrote {args.out}/gpu_check.csv and summary.md")


if __name__ == "__main__":
    main()
