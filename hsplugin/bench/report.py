"""Results of a bench: a table, bench.csv and a picture."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from hsplugin.bench.contenders import CONTENDERS
from hsplugin.bench.measuring import CEILING, Result, Setting
from hsplugin.provenance import processor_name

FIELDS = (
    *("device", "dtype", "n", "d", "t", "mode", "contender", "median_ms", "ratio"),
    *("processor_ms", "processor_ratio", "waited"),
    *("ceiling_share", "peak_mib", "error", "gradient_error", "rounds", "threads", "note"),
)
# With more of the time spent waiting for the processor, clock times mean little.
MUCH_WAITING = 0.1


def machine(device: str) -> str:
    """The hardware and software that the times belong to, in one line."""
    name = processor_name()
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} beside {name}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def row(result: Result) -> dict[str, Any]:
    """A line of bench.csv."""
    setting = result.setting
    return {
        "device": setting.device,
        "dtype": setting.precision,
        "n": setting.n,
        "d": setting.d,
        "t": setting.t,
        "mode": setting.mode,
        "contender": result.contender,
        "median_ms": _number(1e3 * result.median, ".4f"),
        "ratio": _number(result.ratio, ".3f"),
        "processor_ms": _number(_median_ms(result.processor), ".4f"),
        "processor_ratio": _number(result.processor_ratio, ".3f"),
        "waited": _number(result.waited, ".2f"),
        "ceiling_share": _number(result.share, ".3f"),
        "peak_mib": _number(result.peak_mib, ".1f"),
        "error": _number(result.error, ".1e"),
        "gradient_error": _number(result.gradient_error, ".1e"),
        "rounds": len(result.seconds),
        "threads": torch.get_num_threads(),
        "note": result.note,
    }


def write_csv(results: list[Result], path: Path) -> None:
    """Write all rows; a field is empty where nothing was measured."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(row(result) for result in results)


def table(results: list[Result]) -> str:
    """The results of one setting as aligned text."""
    setting = results[0].setting
    lines = [
        f"{setting.n} x {setting.d} {setting.precision} on {setting.device}, t = {setting.t:g}, "
        f"{setting.mode}",
        f"  {'':15}{'median':>12}{'speed-up':>10}{'processor':>13}{'speed-up':>10}"
        f"{'ceiling':>9}{'memory':>12}{'error':>9}{'gradient':>10}",
    ]
    for result in results:
        shown = row(result)
        if not result.seconds:
            lines.append(f"  {result.contender:15}{'-':>12}  {result.note}")
            continue
        share = "" if math.isnan(result.share) else f"{100 * result.share:.0f} %"
        memory = "" if math.isnan(result.peak_mib) else f"{result.peak_mib:.0f} MiB"
        ratio = "" if math.isnan(result.ratio) else f"{result.ratio:.2f} x"
        by_processor = "" if not ratio else f"{result.processor_ratio:.2f} x"
        lines.append(
            f"  {result.contender:15}{1e3 * result.median:>9.3f} ms{ratio:>10}"
            f"{_median_ms(result.processor):>10.3f} ms{by_processor:>10}{share:>9}"
            f"{memory:>12}{shown['error']:>9}{shown['gradient_error']:>10}".rstrip()
        )
    if setting.device == "cpu" and max(r.waited for r in results if r.seconds) > MUCH_WAITING:
        lines.append(
            "  Other programs ran part of the time: trust the processor times, not the medians."
        )
    return "\n".join(lines)


def legend(names: list[str]) -> str:
    """The meaning of the columns and the contenders."""
    lines = [f"  {name:15}{CONTENDERS[name].meaning}" for name in names]
    lines += [f"  {CEILING:15}the ceiling: the matrix products of the tiles alone, by torch.mm"]
    return (
        f"speed-up: over {names[0]}, median of paired runs; processor: time of all threads; "
        "ceiling: its\ntime over the contender's; memory: peak above the features; error and "
        "gradient: against float64.\n"
    ) + "\n".join(lines)


def picture(results: list[Result], path: Path, title: str) -> None:
    """Draw time over n, log-log, with one panel per mode, dimension and dtype.

    Raises:
        ImportError: If matplotlib is missing.
    """
    from hsplugin import plots

    kinds = {_kind(result.setting): result.setting for result in results}
    figure, axes = plots.figure(len(kinds), width=5.0, height=4.2)
    for ax, (kind, setting) in zip(axes, kinds.items(), strict=True):
        own = [result for result in results if _kind(result.setting) == kind and result.seconds]
        for name in dict.fromkeys(result.contender for result in own):
            points = [(r.setting.n, 1e3 * r.median) for r in own if r.contender == name]
            ours = name in ("hsplugin", "our-loss")
            style = ":" if name == CEILING else "-"
            ax.loglog(
                *zip(*sorted(points), strict=True),
                style,
                marker="o",
                markersize=3.5,
                linewidth=2.5 if ours else 1.2,
                label=name,
            )
        title_of_panel = f"{setting.mode}, d = {setting.d}, {setting.precision}"
        ax.set(title=title_of_panel, xlabel="rows n", ylabel="ms")
        ax.grid(True, which="major", alpha=0.3)
    axes[-1].legend(fontsize="small", loc="upper left")
    figure.suptitle(title, fontsize="small")
    path.write_bytes(plots.png(figure))


def _kind(setting: Setting) -> tuple[object, ...]:
    return setting.mode, setting.d, setting.precision


def _median_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds) if seconds else math.nan


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
