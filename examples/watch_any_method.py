"""Watch the geometry of a training script that knows nothing of it, such as a recipe of Lightly.

    git clone https://github.com/lightly-ai/lightly
    python examples/watch_any_method.py lightly/examples/pytorch_lightning/simclr.py
    python examples/watch_any_method.py lightly/examples/pytorch_lightning/byol.py \
        --module projection_head --epochs 3 --random-images 256 --batch-size 32

Every ``pytorch_lightning.Trainer`` that the script makes gets one more callback; nothing else of
the script changes. In a script of your own that is one line:

    pytorch_lightning.Trainer(..., callbacks=[hsplugin_lightly.GeometryMonitor()])

After each epoch the values are printed, and drawn into ``<log directory>/geometry``. A method
whose features cannot be found says why, and which submodules could be named with --module.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import torchvision
from hsplugin_lightly import GeometryMonitor


class PrintedMonitor(GeometryMonitor):
    """The monitor, printing a line an epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Print what was measured."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self.history:
            row = {k: v for k, v in self.history[-1].items() if k != "epoch"}
            values = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
            print(f"\nepoch {trainer.current_epoch}: {values}", flush=True)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Say which submodules there are if nothing could be measured."""
        super().teardown(trainer, pl_module, stage)
        if trainer.is_global_zero and not self.history:
            names = [name for name, _ in pl_module.named_children()]
            print(f"nothing was measured; --module takes one of: {', '.join(names)}")


class RandomImages(torchvision.datasets.FakeData):
    """Random images in the place of a data set, to try a recipe without downloading anything."""

    count = 0

    def __init__(self, root: str, **options: Any) -> None:
        shape = (3, 32, 32)
        super().__init__(self.count, shape, num_classes=10, transform=options.get("transform"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="a script that trains with pytorch_lightning")
    parser.add_argument("--module", help="submodule whose output is watched")
    parser.add_argument("--every-n-steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="instead of the script's own number")
    parser.add_argument("--batch-size", type=int, help="instead of the script's own")
    parser.add_argument("--random-images", type=int, metavar="N", help="in place of CIFAR or VOC")
    parser.add_argument("--out", type=Path, default=Path.cwd(), help="for logs and figures")
    options = parser.parse_args(arguments)
    if not options.script.is_file():
        parser.error(f"{options.script} is no file")

    class WatchedTrainer(pytorch_lightning.Trainer):
        def __init__(self, **settings: Any) -> None:
            monitor = PrintedMonitor(
                module=options.module, every_n_steps=options.every_n_steps, figures=True
            )
            callbacks = settings.pop("callbacks", None) or []
            callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), monitor]
            if options.epochs is not None:
                settings["max_epochs"] = options.epochs
            settings.setdefault("default_root_dir", options.out)
            super().__init__(callbacks=callbacks, **settings)

    class SmallLoader(torch.utils.data.DataLoader):
        def __init__(self, dataset: Any, **settings: Any) -> None:
            settings["batch_size"] = options.batch_size
            super().__init__(dataset, **{**settings, "num_workers": 0})

    pytorch_lightning.Trainer = WatchedTrainer
    if options.batch_size is not None:
        torch.utils.data.DataLoader = SmallLoader
    if options.random_images is not None:
        RandomImages.count = options.random_images
        torchvision.datasets.CIFAR10 = torchvision.datasets.VOCDetection = RandomImages
    sys.argv = [str(options.script)]
    runpy.run_path(str(options.script), run_name="__main__")


if __name__ == "__main__":
    main()
