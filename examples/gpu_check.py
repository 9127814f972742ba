"""One call on a machine with a GPU: check the CUDA path, time it beside its peers, write it down.

In order, until the minutes are over: the tests of the Triton engine on the device; the rates that
the device reaches in copies and matrix products; value and gradient by the kernels and their peers,
compared with float64, from batches as in training to a million rows. Each contender has a process
of its own at each size: what fails, crashes, hangs or finds no time is noted and the rest goes on.

    python examples/gpu_check.py --minutes 9 --out gpu_check

writes gpu_check.csv, summary.md and tests.txt. For the engines' tests it needs pytest and
hypothesis; flex_attention needs a C compiler; KeOps takes part where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
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
    "float16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
# Rows that differ, the others being copies of them, so that float64 knows the value of any number.
DISTINCT = 8192
CLUSTERS = 10
MODES = ("forward+backward", "forward")
FUSED_PEERS, OTHER_PEERS = ("attention", "sdpa"), ("tiled", "keops")
# What a batch of usual size would be computed by without this package.
SMALL_PEERS = ("tiled", "gram", "pdist")
# The widest features for which torch's compiler has tiles that fit.
WIDEST_ATTENTION = 256
# Seconds after which a contender is stopped at one size.
LONGEST = 150
# What a contender's process has measured so far, in the folder of results.
LINES = "part.jsonl"


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
    """The unit rows (m, d) of which n rows are copies, in clusters; m divides n.

    Pulls of rows in all directions would cancel, and errors of them with them.
    """
    generator = torch.Generator().manual_seed(0)
    m = math.gcd(n, DISTINCT)
    centres = torch.randn(CLUSTERS, d, generator=generator)
    apart = torch.randn(m, d, generator=generator)
    x = torch.nn.functional.normalize(centres[torch.arange(m) % CLUSTERS], dim=1)
    return torch.nn.functional.normalize(x + 0.2 * apart / d**0.5, dim=1)


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
    backward = row.mode == MODES[0]
    x = base.repeat(row.n // len(base), 1).requires_grad_(backward)
    function = sdpa if name == "sdpa" else CONTENDERS[name].function

    def step() -> Tensor:
        x.grad = None
        with torch.set_grad_enabled(backward):
            value = function(x, T)
        if backward:
            value.backward()
        return value

    value = float(step().detach())
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
        row = attempted(row, work)
    keep([row], rows, args)


def attempted(row: Row, work: Callable[[], Row]) -> Row:
    """What the work returns, or the row with why it returned nothing."""
    try:
        return work()
    except Exception as error:  # whatever it is, the rest shall still be measured
        text = str(error).strip() or "failed"
        row.note = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
        return row


def keep(new: list[Row], rows: list[Row], args: argparse.Namespace) -> None:
    """Add to the results and write them all down."""
    rows += new
    for row in new:
        print(*(v for v in asdict(row).values() if v not in (None, "")), flush=True)
    with (args.out / "gpu_check.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    (args.out / "summary.md").write_text(summary(rows, args.device))


def planned(name: str, n: int, d: int) -> list[Row]:
    """The rows to be measured of one contender at one size."""
    modes = MODES[1:] if name == "sdpa" else MODES
    return [Row(name, n, d, precision, mode) for precision in PRECISIONS for mode in modes]


def measure_all(name: str, n: int, d: int, args: argparse.Namespace) -> None:
    """Measure one contender at one size, one line of JSON after the other as each is known."""
    failed: str | None = None
    for row in planned(name, n, d):
        if row.precision == failed:
            row.note = "not tried, as it failed with the gradient"
        else:
            row = attempted(row, functools.partial(measured, name, row, args.device, args.seconds))
            failed = row.precision if row.note else None
        with (args.out / LINES).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def measured_apart(name: str, n: int, d: int, args: argparse.Namespace) -> list[Row]:
    """The rows of one contender at one size, by a process that may crash or hang."""
    rows = planned(name, n, d)
    if args.clock.left() <= 0:
        return noted(rows, "no time left")
    if name == "attention" and d > WIDEST_ATTENTION and args.device == "cuda":
        return noted(rows, f"torch has no tiles of flex_attention for d above {WIDEST_ATTENTION}")
    lines = args.out / LINES
    lines.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", name, "--sizes", f"{n}x{d}"]
    command += ["--device", args.device, "--seconds", str(args.seconds), "--out", str(args.out)]
    try:
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=LONGEST)
        why = f"exit {run.returncode}: {(run.stderr.strip().splitlines() or [''])[-1][:200]}"
    except subprocess.TimeoutExpired:
        why = f"not done after {LONGEST} s"
    known = lines.read_text().splitlines() if lines.exists() else []
    lines.unlink(missing_ok=True)
    return [Row(**json.loads(line)) for line in known] + noted(rows[len(known) :], why)


def noted(rows: list[Row], note: str) -> list[Row]:
    """The rows with a note each."""
    return [replace(row, note=note) for row in rows]


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
    if {"tf32", "float32"} <= rates.keys():  # three products in tf32 make one to float32 accuracy
        rates["float32"] = max(rates["float32"], rates["tf32"] / 3)
    for r in rows:
        if r.n is None or r.d is None:
            continue
        start = f"| {r.n} x {r.d} | {r.precision} | {r.mode} | {r.what} "
        if r.median_ms is None:
            lines.append(f"{start}| {r.note.replace('|', '/')} | | | | |")
            continue
        products = (3 if r.mode == MODES[0] else 1) * r.n**2 * r.d
        rate = rates.get(r.precision)
        share = f"{products * 1e-9 / rate / r.median_ms:.0%}" if rate else ""
        cells = [f"{r.median_ms:.3f}", _text(r.peak_mib, ".0f"), _text(r.value_error, ".1e")]
        cells += [_text(r.gradient_error, ".1e"), share]
        lines.append(f"{start}| {' | '.join(cells)} |")
    lines += [
        "",
        "Of the products: the time of N^2 d flop, three times that with the gradient, at the "
        "measured rate of the precision (float32: tf32 / 3 if more), over the time taken.",
    ]
    lines += ["", *(f"- {line}" for line in _targets(rows)), ""]
    return "\n".join(lines)


def _targets(rows: list[Row]) -> list[str]:
    """Value and gradient over one forward of fused attention, where both were measured."""
    times = {(r.what, r.n, r.d, r.precision, r.mode): r.median_ms for r in rows if r.median_ms}
    lines = []
    for (what, n, d, precision, mode), ms in times.items():
        if what != "triton" or mode != MODES[0]:
            continue
        for peer in FUSED_PEERS:
            own = times.get((peer, n, d, precision, MODES[1]))
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
    parser.add_argument("--more", nargs="*", default=["65536x64", "65536x256"], metavar="NxD")
    parser.add_argument("--small", nargs="*", default=["512x128", "2048x128"], metavar="NxD")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing is begun")
    parser.add_argument("--seconds", type=float, default=0.5, help="of repeating a measurement")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    names = ("triton", *dict.fromkeys(FUSED_PEERS + OTHER_PEERS + SMALL_PEERS))
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu with small --sizes tries the script")
    sizes, large, more, small = (
        [tuple(map(int, size.split("x"))) for size in group]
        for group in (args.sizes, args.large, args.more, args.small)
    )
    if args.measure:
        measure_all(args.measure, *sizes[0], args)
        return
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
    plan = [("triton", *size) for size in sizes + large]
    plan += [(name, *size) for name in FUSED_PEERS for size in sizes]
    plan += [(name, *size) for size in small for name in ("triton", *SMALL_PEERS)]
    plan += [("triton", *size) for size in more]
    plan += [(name, *size) for name in OTHER_PEERS for size in sizes]
    for name, n, d in plan:
        if name in args.contenders:
            keep(measured_apart(name, n, d, args), rows, args)
    print(f"\n{summary(rows, args.device)}\nwrote {args.out}/gpu_check.csv and summary.md")


if __name__ == "__main__":
    main()
