"""Times of paired runs in one process, errors, the ceiling beside them, and peak memory."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hsplugin.bench import rows
from hsplugin.bench.contenders import CONTENDERS, UnavailableError, first_line
from hsplugin.checks import computing_dtype
from hsplugin.potential import tiled

MODES = ("forward", "forward+backward")
# Dtype of the features, and torch's setting for matrix products of float32.
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "float64": (torch.float64, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}
# The matrix products alone, in the shapes of the tiles.
CEILING = "products"
LEAST_ROUNDS, MOST_ROUNDS = 3, 300


@dataclass(frozen=True)
class Setting:
    """What every contender computes: the number of unit rows, their dimension, and so on."""

    n: int
    d: int
    precision: str
    device: str
    t: float
    mode: str

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return PRECISIONS[self.precision][0]

    @property
    def backward(self) -> bool:
        """Whether the gradient is computed too."""
        return self.mode == MODES[1]

    def distinct(self) -> Tensor:
        """The different rows, of which the features are copies."""
        return rows.distinct_rows(self.n, self.d).to(self.device, self.dtype)

    def features(self) -> Tensor:
        """The same unit rows (n, d) for every contender."""
        distinct = self.distinct()
        return distinct.repeat(self.n // len(distinct), 1).requires_grad_(self.backward)


@dataclass
class Result:
    """Measurements of one contender in one setting; ``note`` says why there are none."""

    contender: str
    setting: Setting
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    error: float = math.nan
    gradient_error: float = math.nan
    peak_mib: float = math.nan
    ratio: float = math.nan
    processor_ratio: float = math.nan
    share: float = math.nan
    note: str = ""

    @property
    def median(self) -> float:
        """Median of the seconds that a call took, NaN if there was none."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def waited(self) -> float:
        """Share of the time in which the processor ran other programs, or a device worked."""
        if not self.seconds:
            return math.nan
        return max(0.0, 1 - sum(self.processor) / sum(self.seconds))


def measure(
    setting: Setting, names: Sequence[str], seconds: float, *, ceiling: bool = True
) -> list[Result]:
    """Run the contenders in turns for about ``seconds`` in all, after one call each to warm up.

    A ratio is the median over rounds of the first contender's time over this one's in the same
    round, so that a machine that slows down slows both. A contender that fails gets a note.

    Args:
        setting: What they compute.
        names: Keys of ``CONTENDERS``.
        seconds: Time for all rounds; there are at least 3.
        ceiling: Whether to time the matrix products alone too, as the last result.
    """
    torch.set_float32_matmul_precision(PRECISIONS[setting.precision][1])
    x = setting.features()
    distinct = setting.distinct()
    value, gradient = rows.expected(distinct, setting.n, setting.t)
    results = {name: Result(name, setting) for name in names}
    steps: dict[str, Callable[[], Tensor | None]] = {}
    slowest_round = 0.0
    for name, result in results.items():
        step = _step(name, x, setting)
        try:
            _refuse_what_does_not_fit(name, setting)
            own_value = float(step().detach())
            if not CONTENDERS[name].yardstick:
                result.error = abs(own_value - value)
                if x.grad is not None:
                    result.gradient_error = _gradient_error(name, x.grad, distinct, gradient)
            slowest_round += timed(step, setting.device)[0]
        except UnavailableError as error:
            result.note = str(error)
        except Exception as error:  # whatever fails here, the other contenders are still measured
            result.note = f"{type(error).__name__}: {first_line(error)}"
        else:
            steps[name] = step
    if ceiling:
        results[CEILING] = Result(CEILING, setting)
        steps[CEILING] = _products(x.detach(), backward=setting.backward)
        steps[CEILING]()  # to warm up
        slowest_round += timed(steps[CEILING], setting.device)[0]
    order = list(steps)
    shuffled = random.Random(0)
    most = int(seconds / slowest_round) if steps else 0
    for _ in range(min(MOST_ROUNDS, max(LEAST_ROUNDS, most))):
        # The call just before decides how warm the caches are, which is half of a small batch.
        for name in shuffled.sample(order, len(order)):
            clock, processor = timed(steps[name], setting.device)
            results[name].seconds.append(clock)
            results[name].processor.append(processor)
    first = results[names[0]]
    for name in order:
        own = results[name]
        if ceiling:
            own.share = results[CEILING].median / own.median
        if first.seconds:
            own.ratio = _paired(first.seconds, own.seconds)
            own.processor_ratio = _paired(first.processor, own.processor)
    return list(results.values())


def timed(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of a call by the clock, and by the processor, where all threads add up."""
    _wait(device)
    start, processor = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return time.perf_counter() - start, time.process_time() - processor


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _step(name: str, x: Tensor, setting: Setting) -> Callable[[], Tensor]:
    function = CONTENDERS[name].function

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x, setting.t)

    def forward_and_backward() -> Tensor:
        x.grad = None
        value = function(x, setting.t)
        value.backward()
        return value

    return forward_and_backward if setting.backward else forward


def _gradient_error(name: str, gradient: Tensor, distinct: Tensor, expected: Tensor) -> float:
    """Norm of the gradient's error over that of the gradient."""
    error = gradient[: len(distinct)].double() - expected
    if CONTENDERS[name].normalizes:
        unit = distinct.double()
        error = error - (error * unit).sum(1, keepdim=True) * unit
    return float(error.norm() / expected.norm())


def _paired(first: list[float], own: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, own, strict=True))


def _refuse_what_does_not_fit(name: str, setting: Setting) -> None:
    needed = CONTENDERS[name].buffers * setting.n**2 * max(4, setting.dtype.itemsize)
    if name == "pdist" and setting.device == "cuda" and setting.backward:
        needed += setting.n**2 * setting.d * setting.dtype.itemsize  # its backward's buffer
    free = _free_bytes(setting.device)
    if needed > free:
        raise UnavailableError(
            f"would take {needed / 2**30:.0f} GiB of {free / 2**30:.0f} GiB free"
        )


def _free_bytes(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return math.inf


def _products(x: Tensor, *, backward: bool) -> Callable[[], None]:
    """The matrix products over the tiled engine's tiles: three per pair of tiles, or one.

    Half precision is multiplied as it is on a device, as its kernels do, and in float32 on a CPU.
    """
    x = x if x.is_cuda else x.to(computing_dtype(x.dtype))
    step, _ = tiled.tile_shape(x, x, symmetric=True)
    blocks, pulls = x.split(step), torch.zeros_like(x).split(step)
    tile = x.new_empty(len(blocks[0]) ** 2)

    def run() -> None:
        for i, own in enumerate(blocks):
            for j in range(i, len(blocks)):
                w = tile[: len(own) * len(blocks[j])].view(len(own), len(blocks[j]))
                torch.mm(own, blocks[j].T, out=w)
                if backward:
                    pulls[i].addmm_(w, blocks[j])
                    if j > i:
                        pulls[j].addmm_(w.T, own)

    return run


def peak_mib(name: str, setting: Setting) -> float:
    """Most memory above the features during a warm call, in MiB; NaN if the system cannot tell.

    On a CPU it is the growth of the resident size, whose peak Linux records. Memory that earlier
    calls freed is first returned to the system, or its reuse would not be seen. Work space that a
    library keeps for itself after its first call does not count.
    """
    x = setting.features()
    step = _step(name, x, setting)
    step()
    x.grad = None
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident size
        start = _peak_resident_mib()
    except (OSError, AttributeError):  # another system, or another C library
        return math.nan
    step()
    return _peak_resident_mib() - start


def _peak_resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return math.nan
