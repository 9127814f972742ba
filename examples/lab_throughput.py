"""Images a second of the training step of `hsplugin compare`, and what the step spends them on.

Variants of precision, memory format and torch.compile are timed in turns, so that whatever else the
machine does meets all of them; each number is a median. On a GPU every part ends with a
synchronisation.

    python examples/lab_throughput.py --data digits --compile > throughput.md
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from hsplugin.lab.data import Images, load
from hsplugin.lab.files import markdown_table
from hsplugin.lab.learner import Batches, Learner
from hsplugin.lab.settings import RunSettings

PARTS = ("load", "augment", "forward", "backward", "optimizer")


class Variant:
    """One way to compute the step."""

    def __init__(
        self,
        args: argparse.Namespace,
        images: Images,
        precision: str,
        channels_last: bool,
        how: str,
    ) -> None:
        torch.manual_seed(0)
        settings = RunSettings(args.method, precision=precision, backbone=args.backbone)
        self.learner = Learner(settings, images, gather=False).to(args.device)
        if not channels_last:
            self.learner.backbone.to(memory_format=torch.contiguous_format)
        if how == "compiled":
            # In place, which leaves the names of the weights as they are.
            self.learner.backbone.compile()
            self.learner.head.compile()
        self.name = (precision, "channels last" if channels_last else "contiguous", how)
        self.device, self.autocast = args.device, precision != "32-true"
        self.images = images.pool()
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=settings.lr)
        self.times: list[dict[str, float]] = []

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, rows: torch.Tensor) -> dict[str, float]:
        """Seconds of each part of one step."""
        learner, moments = self.learner, [self.now()]
        batch = self.images[rows].to(self.device)
        moments.append(self.now())
        a, b = learner.augment(batch)
        moments.append(self.now())
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = learner.training_loss(a, b)
        moments.append(self.now())
        loss.backward()
        moments.append(self.now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        moments.append(self.now())
        return {name: moments[i + 1] - moments[i] for i, name in enumerate(PARTS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--method", default="align_uniform")
    parser.add_argument("--backbone", default="small-conv")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = load(args.data, args.data_dir)
    variants = [
        Variant(args, images, precision, channels_last, how)
        for precision in ("32-true", "bf16-mixed")
        for channels_last in (False, True)
        for how in ("eager", "compiled")[: 1 + args.compile]
    ]
    batches = Batches(len(images.pool()), args.batch_size, seed=0)
    rows = next(iter(batches))
    # The first step compiles; the second may once more, for the caches that it filled.
    first = [sum((v.step(rows), v.step(rows))[0].values()) for v in variants]
    for _ in range(args.rounds):
        for variant in variants:
            variant.times.append(variant.step(rows))
    lines = [
        ["precision", "memory", "step", "images/s", *(f"{p} ms" for p in PARTS), "share", "first s"]
    ]
    for variant, seconds in zip(variants, first, strict=True):
        of = {part: median(times[part] for times in variant.times) for part in PARTS}
        whole = median(sum(times.values()) for times in variant.times)
        share = 1 - (of["load"] + of["augment"]) / sum(of.values())
        numbers = [f"{1000 * of[part]:.1f}" for part in PARTS]
        lines.append(
            [*variant.name, f"{len(rows) / whole:.0f}", *numbers, f"{share:.0%}", f"{seconds:.1f}"]
        )
    print(f"{args.method} on {args.data}, {args.backbone}, batches of {len(rows)}, {args.device},")
    print(f"{args.threads} threads, torch {torch.__version__}, medians of {args.rounds} rounds;")
    print("share: forward, backward and optimizer of the whole step\n")
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
