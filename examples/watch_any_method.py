"""Monitor the geometry in an unmodified training script, such as one of Lightly's examples.

    git clone https://github.com/lightly-ai/lightly
    python examples/watch_any_method.py lightly/examples/pytorch_lightning/simclr.py
    python examples/watch_any_method.py lightly/examples/pytorch_lightning/byol.py \
        --module projection_head --epochs 3 --random-images 256 --batch-size 32

Every ``pytorch_lightning.Trainer`` in the script gets one more callback; nothing else changes. In
your own script this is one line:

    pytorch_lightning.Trainer(..., callbacks=[hsplugin_lightly.GeometryMonitor()])

After each epoch the values are printed, and drawn into ``<log directory>/geometry``. If a method's
features cannot be found, the script says why and lists the submodules for --module.
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
    """The monitor, printing one line per epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the epoch's values."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self.history:
            row = {k: v for k, v in self.history[-1].items() if k != "epoch"}
            values = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
            print(f"\nepoch {trainer.current_epoch}: {values}", flush=True)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """List the submodules if nothing could be measured."""
        super().teardown(trainer, pl_module, stage)
        if trainer.is_global_zero and not self.history:
            names = [name for name, _ in pl_module.named_children()]
            print(f"nothing was measured; --module takes one of: {', '.join(names)}")


class RandomImages(torchvision.datasets.FakeData):
    """Random images in place of a data set, to try a script without a download."""

    count = 0

    def __init__(self, root: str, **options: Any) -> None:
        shape = (3, 32, 32)
        super().__init__(self.count, shape, num_classes=10, transform=options.get("transform"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="a script that trains with pytorch_lightning")
    parser.add_argument("--module", help="submodule whose output is monitored")
    parser.add_argument("--every-n-steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="replaces the script's number of epochs")
    parser.add_argument("--batch-size", type=int, help="replaces the script's batch size")
    parser.add_argument(
        "--random-images",
        type=int,
        metavar="N",
        help="use N random images in place of CIFAR or VOC",
    )
    parser.add_argument("--out", type=Path, default=Path.cwd(), help="folder for logs and figures")
    options = parser.parse_args(arguments)
    if not options.script.is_file():
        parser.error(f"{options.script} is not a file")

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
