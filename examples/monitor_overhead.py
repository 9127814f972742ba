"""What the monitor costs: a ResNet-18 on 32x32 images, with and without it.

Trains a SimCLR-like two-view module with the Lightning Trainer. Steps with the monitor at its
default settings and steps without it alternate in one process, so that any other load on the
machine affects both equally; the order within a pair alternates too.

    python examples/monitor_overhead.py --pairs 120 --batch-size 64
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from typing import Any

import pytorch_lightning
import torch
import torchvision
from hsplugin_lightly import AlignUniformLoss, GeometryMonitor
from torch import Tensor


class TwoViews(pytorch_lightning.LightningModule):
    """A ResNet-18 on two views, as in Lightly's recipes.

    A stem made for small images would make the step slower and the monitor's share smaller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18(num_classes=128)
        self.criterion = AlignUniformLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of the two views."""
        return self.criterion(self.backbone(batch[0]), self.backbone(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, the cheapest optimiser, so that the step is as short as possible."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class AlternatingMonitor(GeometryMonitor):
    """The monitor on every second step, the order within each pair alternating.

    The batch numbers that it gets count only the watched steps, so that it keeps every 50th of
    them, as in a training where it watches all.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps, strict=True)
        self.every_n_steps = every_n_steps
        self.wall: dict[bool, list[float]] = {True: [], False: []}
        self.processor: dict[bool, list[float]] = {True: [], False: []}
        self.own: dict[bool, list[float]] = {True: [], False: []}

    def _watches(self, batch_idx: int) -> bool:
        return batch_idx % 4 in (0, 3)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clocks."""
        _wait()
        self._started = time.perf_counter(), time.process_time()
        if self._watches(batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx // 2)
        self._own = time.process_time() - self._started[1]

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clocks."""
        watches, watched = self._watches(batch_idx), batch_idx // 2
        if watches:
            began = time.process_time()
            super().on_train_batch_end(trainer, module, outputs, batch, watched)
            self._own += time.process_time() - began
            self.own[watched % self.every_n_steps == 0].append(self._own)
        _wait()
        self.wall[watches].append(time.perf_counter() - self._started[0])
        self.processor[watches].append(time.process_time() - self._started[1])
        # Without the monitor there are no hooks either.
        if self._watches(batch_idx + 1):
            self.on_fit_start(trainer, module)
        else:
            self.teardown(trainer, module, "fit")


def compare(seconds: dict[bool, list[float]], warm_up: int) -> dict[str, float]:
    """Medians with and without the monitor, and the differences between the steps of a pair."""
    watched, plain = seconds[True][warm_up:], seconds[False][warm_up:]
    differences = [a - b for a, b in zip(watched, plain, strict=True)]
    median = statistics.median(plain)
    return {
        "median_without_s": round(median, 6),
        "median_with_s": round(statistics.median(watched), 6),
        "overhead_of_median_percent": round(100 * (statistics.median(watched) / median - 1), 3),
        "median_paired_difference_percent": round(100 * statistics.median(differences) / median, 3),
        "mean_paired_difference_percent": round(100 * statistics.mean(differences) / median, 3),
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=120, help="number of timed steps of each kind")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--every-n-steps", type=int, default=50)
    parser.add_argument(
        "--warm-up", type=int, default=4, help="number of pairs to leave out at the start"
    )
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    steps = 2 * (arguments.pairs + arguments.warm_up)
    images = torch.randn(2, 4 * arguments.batch_size, 3, 32, 32)
    batches = torch.utils.data.TensorDataset(*images)
    sampler = torch.utils.data.RandomSampler(
        batches, replacement=True, num_samples=steps * arguments.batch_size
    )
    loader = torch.utils.data.DataLoader(batches, arguments.batch_size, sampler=sampler)
    monitor = AlternatingMonitor(arguments.every_n_steps)
    trainer = pytorch_lightning.Trainer(
        max_epochs=1,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=1,
    )
    started = time.perf_counter()
    trainer.fit(TwoViews(), loader)
    cuda = torch.cuda.is_available()
    result = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "every_n_steps": arguments.every_n_steps,
        "pairs": arguments.pairs,
        "wall": compare(monitor.wall, arguments.warm_up),
        # Processor time of this process, unaffected by other programs on the machine.
        "processor": compare(monitor.processor, arguments.warm_up),
        "monitor_own_processor_s": {
            "step_not_kept": statistics.median(monitor.own[False]),
            "step_kept": statistics.median(monitor.own[True]),
        },
        "total_s": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
