"""Data for the examples: a data set of PIL images, by name or from a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset


class Digits(Dataset[tuple[Any, int]]):
    """The 1797 digits that scikit-learn includes, as colour images, for trial runs."""

    def __init__(self, train: bool, transform: Callable[[Image.Image], Any]) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = slice(0, 1400) if train else slice(1400, None)
        self.pixels = (digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self.labels = digits.target[chosen].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.pixels[index]).convert("RGB").resize((32, 32))
        return self.transform(image), self.labels[index]


def pictures(
    data: str, split: str, transform: Callable[[Image.Image], Any], *, root: str, limit: int | None
) -> Dataset[tuple[Any, int]]:
    """Open a data set.

    Args:
        data: ``"digits"``, ``"cifar10"``, ``"stl10"``, or a folder with one folder per split, each
            with one folder of images per class.
        split: ``"train"``, ``"val"``, or, for STL-10, ``"train+unlabeled"``.
        transform: Applied to each image.
        root: Folder for torchvision's downloads.
        limit: Number of images to use, all by default.
    """
    from torchvision import datasets

    dataset: Dataset[tuple[Any, int]]
    if data == "digits":
        dataset = Digits(split.startswith("train"), transform)
    elif data == "cifar10":
        dataset = datasets.CIFAR10(root, split.startswith("train"), transform, download=True)
    elif data == "stl10":
        part = "test" if split == "val" else split
        dataset = datasets.STL10(root, part, transform=transform, download=True)
    else:
        dataset = datasets.ImageFolder(f"{data}/{split.split('+')[0]}", transform)
    return Subset(dataset, range(min(limit, len(dataset)))) if limit else dataset  # type: ignore[arg-type]
