"""Images in memory as uint8 tensors, in three splits that no seed changes.

The training split trains encoders and probes, the validation split chooses epochs and
hyper-parameters, and the test split is only reported.
"""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.lab.decode import decode

# The splits define the benchmark, so they never change.
SPLIT_SEED = 20200520


@dataclass(frozen=True)
class Split:
    """Images ``(n, channels, height, width)`` in uint8 and their labels ``(n,)`` in int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Images:
    """A data set: three splits, the number of classes, and which augmentations make sense.

    Encoders learn from the training images and any unlabelled ones, probes from the training
    images and their labels.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    flip: bool
    """Whether a mirrored image still shows the same thing."""
    colour: bool
    """Whether the images have three channels to jitter."""
    unlabelled: Tensor | None = None
    names: tuple[str, ...] = ()
    """Names of the classes, where they have any."""

    @property
    def pool_size(self) -> int:
        """How many images an encoder may learn from."""
        return len(self.train) + (0 if self.unlabelled is None else len(self.unlabelled))

    def name_of(self, label: int) -> str:
        """What a message calls a class."""
        return f"class {self.names[label] if self.names else label}"

    def missing(self, labels: Tensor) -> list[str]:
        """The classes that none of the labels is of."""
        return [self.name_of(c) for c in sorted(set(range(self.classes)) - set(labels.tolist()))]

    def pool(self) -> Tensor:
        """All images that an encoder may learn from."""
        if self.unlabelled is None:
            return self.train.images
        return torch.cat([self.train.images, self.unlabelled])


@dataclass(frozen=True)
class Source:
    """How a data set is read, and defaults for the settings of the same names."""

    read: Callable[[Path | None], Images]
    about: str
    epochs: int
    batch_size: int = 256
    labels_per_class: int | None = None


def source(name: str) -> Source:
    """The data set of this name, or a folder of images.

    Raises:
        CommandError: Neither a known name nor a folder.
    """
    if name in DATA:
        return DATA[name]
    if Path(name).is_dir():
        return Source(lambda _: _folder(Path(name), 64), f"the images in {name}", epochs=100)
    raise CommandError(f"{unknown('data set', name, DATA)}, or a folder of images")


def load(
    name: str, data_dir: str | None, train_size: int | None = None, image_size: int | None = None
) -> Images:
    """Read a data set by name.

    Args:
        name: A key of `DATA`, or a folder of images.
        data_dir: Folder with the files; None downloads where that is needed.
        train_size: Keep this many training images (a fixed subset), and no unlabelled ones.
        image_size: Side in pixels of a folder's images; None gives 64.

    Raises:
        CommandError: Unknown name, missing or damaged file, too large a subset.
    """
    if name not in DATA and image_size is not None and Path(name).is_dir():
        images = _folder(Path(name), image_size)
    else:
        images = source(name).read(Path(data_dir) if data_dir else None)
    if train_size is None:
        return images
    if not 2 <= train_size <= len(images.train):
        raise CommandError(
            f"--train-size {train_size}: {name} has {len(images.train)} training images; "
            f"give a number from 2 to that"
        )
    subset = Split(images.train.images[:train_size], images.train.labels[:train_size])
    return replace(images, train=subset, unlabelled=None)


def cache_dir() -> Path:
    """Folder for downloads: ``$HSPLUGIN_DATA``, else a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HSPLUGIN_DATA", f"{base}/hsplugin")).expanduser()


def _shuffled(images: Tensor, labels: Tensor, *sizes: int) -> list[Split]:
    """Cut a fixed permutation into splits of the given sizes; the first takes the rest."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = torch.split(order, [len(order) - sum(sizes), *sizes])
    return [Split(images[part].contiguous(), labels[part].contiguous()) for part in parts]


def _digits(data_dir: Path | None) -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, validation, test = _shuffled(images, labels, 297, 500)
    return Images(train, validation, test, classes=10, flip=False, colour=False)


def read_idx(path: Path) -> Tensor:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    Raises:
        CommandError: The file is missing, unreadable, damaged or shorter than its header says.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CommandError(f"{path} is truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise CommandError(f"{path} is not an IDX file of bytes; fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != int(np.prod(shape)):
        raise CommandError(
            f"{path} is truncated or damaged: {values.size} bytes of data where its header "
            f"promises {int(np.prod(shape))}; fetch it again"
        )
    return torch.from_numpy(values.reshape(shape).copy())


def _idx_file(folder: Path, stem: str) -> Path:
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for path in (place / stem, place / f"{stem}.gz"):
            if path.exists():
                return path
    raise CommandError(
        f"no {stem} or {stem}.gz in {folder}; --data-dir must hold the four IDX files of "
        "Fashion-MNIST (Debian: package dataset-fashion-mnist)"
    )


def _fashion_mnist(data_dir: Path | None) -> Images:
    if data_dir is None:
        data_dir = cache_dir()
        _torchvision("FashionMNIST", data_dir, download=True)
    paths = [
        _idx_file(data_dir, f"{part}-{kind}-ubyte")
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    images, labels, test_images, test_labels = (read_idx(path) for path in paths)
    parts = ((paths[0], images, labels), (paths[2], test_images, test_labels))
    for path, pixels, targets in parts:
        if pixels.ndim != 3 or targets.ndim != 1 or len(pixels) != len(targets):
            raise CommandError(
                f"{path} and its labels do not belong together: "
                f"{tuple(pixels.shape)} and {tuple(targets.shape)}"
            )
    train, validation = _shuffled(images.unsqueeze(1), labels.long(), 5000)
    test = Split(test_images.unsqueeze(1), test_labels.to(torch.int64))
    return Images(train, validation, test, classes=10, flip=True, colour=False)


def _torchvision(name: str, folder: Path, **options: Any) -> Any:
    """A torchvision data set whose errors name the folder and the remedy."""
    from torchvision import datasets

    try:
        return getattr(datasets, name)(folder, **options)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise CommandError(
            f"cannot get {name} from {folder} ({reason}); give a folder with its files by "
            "--data-dir"
        ) from None


def _cifar(name: str, classes: int) -> Callable[[Path | None], Images]:
    def read(data_dir: Path | None) -> Images:
        folder, download = data_dir or cache_dir(), data_dir is None
        parts = []
        for train in (True, False):
            part = _torchvision(name, folder, train=train, download=download)
            pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append(Split(pixels, torch.tensor(part.targets)))
        train_split, validation = _shuffled(parts[0].images, parts[0].labels, 5000)
        return Images(train_split, validation, parts[1], classes, flip=True, colour=True)

    return read


def _stl10(data_dir: Path | None) -> Images:
    folder, download = data_dir or cache_dir(), data_dir is None
    pixels, labels = {}, {}
    for part in ("train", "test", "unlabeled"):
        images = _torchvision("STL10", folder, split=part, download=download)
        pixels[part] = torch.from_numpy(images.data)
        labels[part] = torch.from_numpy(images.labels).long()
    train, validation = _shuffled(pixels["train"], labels["train"], 1000)
    test = Split(pixels["test"], labels["test"])
    return Images(train, validation, test, 10, True, True, unlabelled=pixels["unlabeled"])


def _folder(folder: Path, size: int) -> Images:
    """Images in ``train/CLASS``, ``val/CLASS``, ``test/CLASS``, or in ``CLASS`` alone.

    A missing split takes a tenth of the training images. Every image is scaled by its shorter
    side and cropped at its centre once, so that training never waits for a decoder.
    """
    places = {"train": ["train"], "validation": ["val", "valid", "validation"], "test": ["test"]}
    found = {
        split: next((folder / n for n in names if (folder / n).is_dir()), None)
        for split, names in places.items()
    }
    if found["train"] is None and (alone := [path for path in found.values() if path]):
        raise CommandError(f"{folder} has {alone[0].name} but no train; add it, or rename that one")
    *pixels, classes = decode(found["train"] or folder, size)
    train = Split(*pixels)
    validation = test = None
    for split in ("validation", "test"):
        path = found[split]
        if path is not None and found["train"] is not None:
            *pixels, there = decode(path, size)
            part = Split(*pixels)
            if there != classes:
                raise CommandError(f"{path} and {found['train']} hold different classes")
            validation, test = (part, test) if split == "validation" else (validation, part)
    tenth = max(1, len(train) // 10)
    if validation is None:
        train, validation = _shuffled(train.images, train.labels, tenth)
    if test is None:
        train, test = _shuffled(train.images, train.labels, tenth)
    return Images(train, validation, test, len(classes), True, True, names=tuple(classes))


DATA: dict[str, Source] = {
    "digits": Source(
        _digits,
        "1797 digits of 8x8 pixels that scikit-learn ships",
        epochs=60,
        batch_size=128,
        labels_per_class=5,
    ),
    "fashion-mnist": Source(_fashion_mnist, "70000 clothes of 28x28 pixels", epochs=20),
    "cifar10": Source(_cifar("CIFAR10", 10), "60000 photos of 32x32 pixels", epochs=200),
    "cifar100": Source(_cifar("CIFAR100", 100), "the same size, 100 classes", epochs=200),
    "stl10": Source(_stl10, "13000 photos of 96x96 pixels and 100000 unlabelled", epochs=200),
}
