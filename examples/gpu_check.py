"""One call on a machine with a GPU: test the CUDA path, time it, and write the results down.

Until the minutes are over, in this order: the tests of the Triton engine on the device; the rates
of copies and matrix products on the device; value and gradient by the kernels and the alternatives,
against float64, from training batches to a million rows. ``hsplugin.bench`` measures them, each
contender and size in its own process: a failure, crash, hang or lack of time is noted, and the rest
goes on.

    python examples/gpu_check.py --minutes 9 --out gpu_check

writes gpu_check.csv, summary.md and tests.txt. The engines' tests need pytest and hypothesis;
flex_attention needs a C compiler; KeOps takes part where it is installed.
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

from hsplugin.bench import measuring
from hsplugin.bench.report import machine

ROOT = Path(__file__).parents[1]
T = 2.0
PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
FORWARD, BOTH = measuring.MODES
FUSED_PEERS, OTHER_PEERS = ("attention", "sdpa"), ("tiled", "keops")
# What computes a batch of usual size without this package.
SMALL_PEERS = ("tiled", "gram", "pdist")
# A contender at one size is stopped after this many seconds.
LONGEST = 150
# What a contender's process has measured so far, in the folder of results.
LINES = "part.jsonl"


@dataclass
class Row:
    """One line of the results; fields without a measurement stay empty."""

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


def ceiling(name: str, device: str) -> Row:
    """The device's rate in a copy, in TB/s read and written, or a product, in TFLOP/s."""
    side = 8192 if device == "cuda" else 256
    if name == "copy":
        a = torch.randn(8 * side, side, device=device)
        b = torch.empty_like(a)
        row, work, unit = Row("copy"), 2e-12 * a.nbytes, "TB/s"
        step: Callable[[], object] = functools.partial(b.copy_, a)
    else:
        dtype, setting = measuring.PRECISIONS[name]
        torch.set_float32_matmul_precision(setting)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        row, work, unit = Row("product", precision=name), 2e-12 * side**3, "TFLOP/s"
        step = functools.partial(torch.mm, a, b)
    seconds = [measuring.timed(step, device)[0] for _ in range(21)][1:]  # the first warms up
    median = statistics.median(seconds)
    return replace(row, median_ms=1e3 * median, rounds=len(seconds), rate=work / median, unit=unit)


def measured(row: Row, device: str, seconds: float) -> Row:
    """Time, memory and errors of one contender."""
    assert row.n is not None and row.d is not None
    setting = measuring.Setting(row.n, row.d, row.precision, device, T, row.mode)
    (result,) = measuring.measure(setting, [row.what], seconds, ceiling=False)
    if result.note:
        return replace(row, note=result.note)
    return replace(
        row,
        median_ms=1e3 * result.median,
        rounds=len(result.seconds),
        peak_mib=known(measuring.peak_mib(row.what, setting)),
        value_error=known(result.error),
        gradient_error=known(result.gradient_error),
    )


def known(number: float) -> float | None:
    """The number, or None for NaN."""
    return None if math.isnan(number) else number


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


def attempted(row: Row, work: Callable[[], Row]) -> Row:
    """The row that the work returns, or the given one with the reason why it returned none."""
    try:
        return work()
    except Exception as error:  # whatever it is, the rest is still measured
        text = str(error).strip() or "failed"
        return replace(row, note=f"{type(error).__name__}: {text.splitlines()[0][:200]}")


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
    """The rows to measure of one contender at one size."""
    modes = (FORWARD,) if name == "sdpa" else (BOTH, FORWARD)
    return [Row(name, n, d, precision, mode) for precision in PRECISIONS for mode in modes]


def measure_all(name: str, n: int, d: int, args: argparse.Namespace) -> None:
    """Measure one contender at one size; append a line of JSON for each row as it is known."""
    failed: str | None = None
    for row in planned(name, n, d):
        if row.precision == failed:
            row.note = "not tried, as it failed with the gradient"
        else:
            row = attempted(row, functools.partial(measured, row, args.device, args.seconds))
            failed = row.precision if row.note else None
        with (args.out / LINES).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def measured_apart(name: str, n: int, d: int, args: argparse.Namespace) -> list[Row]:
    """The rows of one contender at one size, from a process that may crash or hang."""
    rows = planned(name, n, d)
    if time.perf_counter() > args.end:
        return noted(rows, "no time left")
    lines = args.out / LINES
    lines.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", name, "--sizes", f"{n}x{d}"]
    command += ["--device", args.device, "--seconds", str(args.seconds), "--out", str(args.out)]
    try:
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=LONGEST)
        why = f"exit {run.returncode}: {(run.stderr.strip().splitlines() or [''])[-1][:200]}"
    except subprocess.TimeoutExpired:
        why = f"not done after {LONGEST} s"
    done = lines.read_text().splitlines() if lines.exists() else []
    lines.unlink(missing_ok=True)
    return [Row(**json.loads(line)) for line in done] + noted(rows[len(done) :], why)


def noted(rows: list[Row], note: str) -> list[Row]:
    """The rows with a note each."""
    return [replace(row, note=note) for row in rows]


def summary(rows: list[Row], device: str) -> str:
    """The results as a table, with their share of the device's rate of products."""
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
    if {"tf32", "float32"} <= rates.keys():  # three tf32 products make a float32 one
        rates["float32"] = max(rates["float32"], rates["tf32"] / 3)
    for r in rows:
        if r.n is None or r.d is None:
            continue
        start = f"| {r.n} x {r.d} | {r.precision} | {r.mode} | {r.what} "
        if r.median_ms is None:
            lines.append(f"{start}| {r.note.replace('|', '/')} | | | | |")
            continue
        products = (3 if r.mode == BOTH else 1) * r.n**2 * r.d
        rate = rates.get(r.precision)
        share = f"{products * 1e-9 / rate / r.median_ms:.0%}" if rate else ""
        cells = [f"{r.median_ms:.3f}", _text(r.peak_mib, ".0f"), _text(r.value_error, ".1e")]
        cells += [_text(r.gradient_error, ".1e"), share]
        lines.append(f"{start}| {' | '.join(cells)} |")
    lines += [
        "",
        "Of the products: the time that N^2 d flop (three times as many with the gradient) take at "
        "the precision's measured rate (float32: that of tf32 / 3 if higher), over the time taken.",
    ]
    lines += ["", *(f"- {line}" for line in _targets(rows)), ""]
    return "\n".join(lines)


def _targets(rows: list[Row]) -> list[str]:
    """Time of value and gradient over that of one forward of fused attention."""
    times = {(r.what, r.n, r.d, r.precision, r.mode): r.median_ms for r in rows if r.median_ms}
    lines = []
    for (what, n, d, precision, mode), ms in times.items():
        if what != "triton" or mode != BOTH:
            continue
        for peer in FUSED_PEERS:
            own = times.get((peer, n, d, precision, FORWARD))
            if own:
                lines.append(f"{n} x {d} {precision}: {ms / own:.2f} of one forward of {peer}")
    return lines


def _text(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def main() -> None:
    """Measure everything there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    groups = {
        "sizes": ["65536x128", "16384x2048"],
        "large": ["1048576x128"],
        "more": ["65536x64", "65536x256"],
        "small": ["512x128", "2048x128"],
    }
    for group, default in groups.items():
        parser.add_argument(
            f"--{group}", nargs="*", default=[*map(size, default)], type=size, metavar="NxD"
        )
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing begins after these")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    names = ("triton", *dict.fromkeys(FUSED_PEERS + OTHER_PEERS + SMALL_PEERS))
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu with small --sizes tries the script")
    if args.measure:
        measure_all(args.measure, *args.sizes[0], args)
        return
    args.end = time.perf_counter() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    first: list[tuple[Row, Callable[[], Row]]] = []
    if not args.no_tests:
        first += [(Row("tests"), functools.partial(tests, args.out, 30 * args.minutes))]
    first += [(Row("copy"), functools.partial(ceiling, "copy", args.device))]
    for name in PRECISIONS:
        work = functools.partial(ceiling, name, args.device)
        first += [(Row("product", precision=name), work)]
    for row, work in first:
        late = time.perf_counter() > args.end
        keep(noted([row], "no time left") if late else [attempted(row, work)], rows, args)
    plan = [("triton", *size) for size in args.sizes + args.large]
    plan += [(name, *size) for name in FUSED_PEERS for size in args.sizes]
    plan += [(name, *size) for size in args.small for name in ("triton", *SMALL_PEERS)]
    plan += [("triton", *size) for size in args.more]
    plan += [(name, *size) for name in OTHER_PEERS for size in args.sizes]
    for name, n, d in plan:
        if name in args.contenders:
            keep(measured_apart(name, n, d, args), rows, args)
    print(f"\n{summary(rows, args.device)}\nwrote {args.out}/gpu_check.csv and summary.md")


def size(text: str) -> tuple[int, int]:
    """Rows and dimension of a size such as 65536x128."""
    n, d = text.split("x")
    return int(n), int(d)


if __name__ == "__main__":
    main()
