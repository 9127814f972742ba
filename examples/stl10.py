"""The paper's STL-10 recipe with this loss: train the encoder, then a linear probe on its fc7.

The defaults are the published settings (small AlexNet, 128 dimensions, batch 768, 200 epochs,
alignment with alpha = 2 plus uniformity with t = 2; the reference reports 83.19 % on fc7, and the
paper's best weights .98 and .96 reach 84.43 %).

    python examples/stl10.py --root datasets                # full size; a GPU with 12 GB
    python examples/stl10.py --data FOLDER                  # FOLDER/train/CLASS/*, FOLDER/val/...
    python examples/stl10.py --small                        # digits, a minute on a CPU
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pictures import pictures
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

import hsplugin

# Mean and standard deviation of STL-10's training images.
NORMALIZE = transforms.Normalize((0.441, 0.428, 0.387), (0.268, 0.261, 0.269))

SMALL = {
    "data": "digits",
    "width": 0.125,
    "batch_size": 128,
    "epochs": 6,
    "decay_at": [5],
    "probe_epochs": 20,
    "probe_decay_at": [12, 16],
    "workers": 0,
}


class SmallAlexNet(nn.Module):
    """Five convolutions and two fully connected layers with batch norm, then a linear output.

    Args:
        dim: Dimension of the output.
        width: Factor for the number of channels and units.
    """

    def __init__(self, dim: int = 128, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, pool in ((96, True), (192, True), (384, False), (384, False), (192, True)):
            after = max(8, int(channels * width))
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            if pool:
                layers.append(nn.MaxPool2d(3, 2))
            before = after
        layers.append(nn.Flatten())
        self.fc7_units = int(4096 * width)
        for units in (before * 7 * 7, self.fc7_units):
            layers += [
                nn.Linear(units, self.fc7_units, bias=False),
                nn.BatchNorm1d(self.fc7_units),
                nn.ReLU(),
            ]
        self.fc7 = nn.Sequential(*layers)
        self.output = nn.Linear(self.fc7_units, dim)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, 0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, dim) of images (n, 3, 64, 64), not yet normalised."""
        return self.output(self.fc7(images))


class TwoViews:
    """The recipe's augmentation, applied twice; ``mirror`` if mirroring keeps the class."""

    def __init__(self, mirror: bool) -> None:
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(64, scale=(0.08, 1)),
                transforms.RandomHorizontalFlip(0.5 if mirror else 0.0),
                transforms.ColorJitter(0.4, 0.4, 0.4, 0.4),
                transforms.RandomGrayscale(p=0.2),
                transforms.ToTensor(),
                NORMALIZE,
            ]
        )

    def __call__(self, image: Image) -> tuple[Tensor, Tensor]:
        """Two views (3, 64, 64) of one image."""
        return self.augment(image), self.augment(image)


def loader(args: argparse.Namespace, split: str, transform: object, size: int) -> DataLoader:
    training = split != "val"
    return DataLoader(
        pictures(args.data, split, transform, root=args.root, limit=args.limit),
        batch_size=size,
        shuffle=training,
        drop_last=training,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
    )


def train(args: argparse.Namespace, device: str) -> SmallAlexNet:
    """Train the encoder, through which both views go as one batch."""
    views = loader(args, "train+unlabeled", TwoViews(args.data != "digits"), args.batch_size)
    encoder = SmallAlexNet(args.dim, args.width).to(device)
    criterion = hsplugin.AlignUniformLoss(
        args.align_weight, args.uniform_weight, alpha=args.align_alpha, t=args.uniform_t
    )
    rate = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(encoder.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, args.decay_at, gamma=0.1)
    for epoch in range(args.epochs):
        sums = torch.zeros(3)
        for (view_a, view_b), _ in views:
            features = encoder(torch.cat([view_a, view_b]).to(device, non_blocking=True))
            terms = criterion.components(*features.chunk(2))
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            sums += torch.stack(terms).detach().cpu()
        schedule.step()
        loss, align, uniform = (sums / len(views)).tolist()
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}   alignment {align:.4f}   "
            f"uniformity {uniform:.4f} "
            f"(optimum {hsplugin.uniformity_optimum(args.dim, args.uniform_t):.4f})",
            flush=True,
        )
    return encoder


def probe(encoder: SmallAlexNet, args: argparse.Namespace, device: str) -> float:
    """Test accuracy of a linear classifier on the frozen fc7, after its last epoch."""
    seen = transforms.Compose(
        [
            transforms.RandomResizedCrop(64, scale=(0.08, 1)),
            transforms.RandomHorizontalFlip(0.0 if args.data == "digits" else 0.5),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    held_out = transforms.Compose(
        [transforms.Resize(70), transforms.CenterCrop(64), transforms.ToTensor(), NORMALIZE]
    )
    training, test = loader(args, "train", seen, 128), loader(args, "val", held_out, 128)
    classifier = nn.Linear(encoder.fc7_units, args.classes).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, args.probe_decay_at, gamma=0.2)
    encoder.eval()
    for _ in range(args.probe_epochs):
        for images, labels in training:
            with torch.no_grad():
                features = encoder.fc7(images.to(device))
            loss = nn.functional.cross_entropy(classifier(features), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    right = seen_labels = 0
    with torch.no_grad():
        for images, labels in test:
            predicted = classifier(encoder.fc7(images.to(device))).argmax(1).cpu()
            right += int((predicted == labels).sum())
            seen_labels += len(labels)
    return right / seen_labels


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="stl10", help="stl10, digits, or a folder of images")
    parser.add_argument("--root", default="datasets", help="folder for downloads")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--limit", type=int, help="number of images of each split to use")
    parser.add_argument("--align-weight", type=float, default=1.0)
    parser.add_argument("--uniform-weight", type=float, default=1.0)
    parser.add_argument("--align-alpha", type=float, default=2.0)
    parser.add_argument("--uniform-t", type=float, default=2.0)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--width", type=float, default=1.0, help="factor for the encoder's width")
    parser.add_argument("--batch-size", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.12, help="per 256 images in a batch")
    parser.add_argument("--decay-at", type=int, nargs="*", default=[155, 170, 185])
    parser.add_argument("--probe-epochs", type=int, default=100)
    parser.add_argument("--probe-decay-at", type=int, nargs="*", default=[60, 80])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the encoder's weights")
    parser.add_argument("--small", action="store_true", help=f"a trial run: {SMALL}")
    if parser.parse_known_args(argv)[0].small:
        parser.set_defaults(**SMALL)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = train(args, device)
    if args.out:
        torch.save(encoder.state_dict(), args.out)
    print(f"linear probe on fc7: {probe(encoder, args, device):.2%} of the test images")


if __name__ == "__main__":
    main()
