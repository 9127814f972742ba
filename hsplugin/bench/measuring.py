"""Times of paired runs in one process, the ceiling beside them, and peak memory."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hsplugin.bench.contenders import CONTENDERS, UnavailableError, exact
from hsplugin.checks import computing_dtype
from hsplugin.potential import tiled

MODES = ("forward", "forward+backward")
# The matrix products alone, in the shapes of the tiles.
CEILING = "products"
LEAST_ROUNDS, MOST_ROUNDS = 3, 300


@dataclass(frozen=True)
class Setting:
    """What is computed: so many unit rows of such a dimension, by all contenders alike."""

    n: int
    d: int
    dtype: torch.dtype
    device: str
    t: float
    mode: str

    def features(self) -> Tensor:
        """The same unit rows for every contender."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.n, self.d, generator=generator)
        return nn.functional.normalize(x, dim=1).to(self.device, self.dtype)


@dataclass
class Result:
    """What was seen of one contender in one setting; ``note`` says why, where there is nothing."""

    contender: str
    setting: Setting
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    value: float = math.nan
    exact: float = math.nan
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
        """Share of the time in which other programs had the processor, or a device worked."""
        if not self.seconds:
            return math.nan
        return max(0.0, 1 - sum(self.processor) / sum(self.seconds))


def measure(setting: Setting, names: list[str], seconds: float) -> list[Result]:
    """Run the contenders by turns for about so many seconds, after one call each to warm up.

    Ratios are medians over rounds of what the first contender took over what this one took in the
    same round, so that a machine that slows down slows both.
    """
    x = setting.features().requires_grad_(setting.mode == MODES[1])
    results = {name: Result(name, setting, exact=math.nan) for name in [*names, CEILING]}
    steps: dict[str, Callable[[], Tensor | None]] = {}
    reference = exact(x, setting.t)
    slowest_round = 0.0
    for name in names:
        result = results[name]
        result.exact = reference
        step = _step(name, x, setting)
        try:
            _refuse_what_does_not_fit(name, setting)
            value = step()
            assert value is not None
            result.value = float(value.detach())
            slowest_round += _timed(step, setting.device)[0]
        except (UnavailableError, torch.OutOfMemoryError, NotImplementedError) as error:
            result.note = str(error).splitlines()[0]
            continue
        steps[name] = step
    steps[CEILING] = _products(x.detach(), backward=setting.mode == MODES[1])
    steps[CEILING]()  # to warm up
    slowest_round += _timed(steps[CEILING], setting.device)[0]
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / slowest_round)))
    order = list(steps)
    shuffled = random.Random(0)
    for _ in range(rounds):
        # What ran just before decides how warm the caches are, which is half of a small batch.
        for name in shuffled.sample(order, len(order)):
            clock, processor = _timed(steps[name], setting.device)
            results[name].seconds.append(clock)
            results[name].processor.append(processor)
    ceiling = results[CEILING].median
    first = results[names[0]]
    for name in order:
        own = results[name]
        own.share = ceiling / own.median
        if first.seconds:
            own.ratio = _paired(first.seconds, own.seconds)
            own.processor_ratio = _paired(first.processor, own.processor)
    return list(results.values())


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

    return forward if setting.mode == MODES[0] else forward_and_backward


def _paired(first: list[float], own: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, own, strict=True))


def _timed(step: Callable[[], Tensor | None], device: str) -> tuple[float, float]:
    """Seconds by the clock and by the processor, of which all threads together may take more."""
    _wait(device)
    start, processor = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return time.perf_counter() - start, time.process_time() - processor


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _refuse_what_does_not_fit(name: str, setting: Setting) -> None:
    needed = CONTENDERS[name].buffers * setting.n**2 * max(4, setting.dtype.itemsize)
    if name == "pdist" and setting.device == "cuda" and setting.mode == MODES[1]:
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
    """The products over the tiled engine's tiles and nothing else: three a pair, or one.

    Half precision is multiplied as a device's kernels do, as it is, and on a CPU in float32.
    """
    x = x if x.is_cuda else x.to(computing_dtype(x.dtype))
    step, _ = tiled.tile_shape(x, x, symmetric=True)
    blocks, pulls = x.split(step), torch.zeros_like(x).split(step)
    tile = x.new_empty(len(blocks[0]) ** 2)

    def run() -> None:
        for i, rows in enumerate(blocks):
            for j in range(i, len(blocks)):
                w = tile[: len(rows) * len(blocks[j])].view(len(rows), len(blocks[j]))
                torch.mm(rows, blocks[j].T, out=w)
                if backward:
                    pulls[i].addmm_(w, blocks[j])
                    if j > i:
                        pulls[j].addmm_(w.T, rows)

    return run


def peak_mib(name: str, setting: Setting) -> float:
    """Most memory above the features that a warm call takes, in MiB; NaN where none can tell.

    On a CPU it is the growth of the resident size, of which Linux keeps the highest; the memory
    that earlier calls have freed is handed back to the system first, or it would be taken again
    unseen. Work space that a library keeps for itself after its first call does not count.
    """
    x = setting.features().requires_grad_(setting.mode == MODES[1])
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
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
        start = _highest_resident_mib()
    except (OSError, AttributeError):  # another system, or another C library
        return math.nan
    step()
    return _highest_resident_mib() - start


def _highest_resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return math.nan
