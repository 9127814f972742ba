"""Backbones and the augmentation that every method shares."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.lab.data import Images


def backbone(name: str, images: Images) -> tuple[nn.Module, int]:
    """Build an untrained encoder.

    Args:
        name: ``"small-conv"``, or the name of a torchvision or timm model.
        images: The data set, for its channels and size. A named model takes grey images as three
            equal channels; a ResNet for images of at most 64 pixels gets a 3x3 stem without
            pooling, as is usual for them.

    Returns:
        The module, mapping ``(n, channels, height, width)`` to ``(n, features)``, and the number
        of features. Its weights are channels-last, which convolutions pass on: faster on CPUs,
        and on GPUs in half precision.

    Raises:
        CommandError: Neither library knows the name.
    """
    encoder, features = _built(name, images)
    return encoder.to(memory_format=torch.channels_last), features  # type: ignore[call-overload]


def _built(name: str, images: Images) -> tuple[nn.Module, int]:
    _, channels, height, _ = images.train.images.shape
    if name == "small-conv":
        # Images of 8x8 pixels need no stride in the first layer and only half the channels.
        if height <= 16:
            return small_conv(channels, (16, 32, 64, 128), stem_stride=1), 128
        return small_conv(channels, (32, 64, 128, 256), stem_stride=2), 256
    network = _named(name)
    if height <= 64 and isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
        if isinstance(network.conv1, nn.Conv2d):
            network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        else:  # a stem of several small convolutions
            network.conv1[0].stride = (1, 1)
        network.maxpool = nn.Identity()
    encoder = nn.Sequential(_ThreeChannels(), network, nn.Flatten())
    encoder.eval()
    # Measured, because torchvision does not say and timm's num_features leaves out conv heads.
    with torch.no_grad():
        features = encoder(to_float(images.train.images[:2])).shape[1]
    encoder.train()
    return encoder, features


def _named(name: str) -> Any:
    from torchvision import models

    if name in models.list_models():
        network = models.get_model(name, weights=None)
        for classifier in ("fc", "classifier", "head", "heads"):
            if hasattr(network, classifier):
                setattr(network, classifier, nn.Identity())
        return network
    try:
        import timm
    except ImportError:
        raise CommandError(
            f"{unknown('backbone', name, ['small-conv', *models.list_models()])}; "
            "timm's names need pip install timm"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(
            name, ["small-conv", *models.list_models(), *timm.list_models()]
        )
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise CommandError(
            f"unknown backbone {name!r}; {hint}Known: small-conv and the models of torchvision "
            "and timm"
        )
    return timm.create_model(name, pretrained=False, num_classes=0)


class _MeanOverPixels(nn.Module):
    """AdaptiveAvgPool2d(1), whose gradient is not channels-last and slows down what follows."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, images.shape[-2:])


class _ThreeChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


def small_conv(channels: int, widths: Sequence[int], stem_stride: int) -> nn.Module:
    """Four 3x3 convolutions with batch norm, the last two with stride 2, then average pooling.

    The larger widths take 12 million multiply-adds for a 28x28 image: an epoch of 10000 images
    with two views takes seconds on two CPU cores.
    """
    layers: list[nn.Module] = []
    before = channels
    for width, stride in zip(widths, (stem_stride, 1, 2, 2), strict=True):
        layers += [
            nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        before = width
    return nn.Sequential(*layers, _MeanOverPixels(), nn.Flatten())


class Augment(nn.Module):
    """Two random views of a batch, drawn per image and computed on whole tensors.

    Always crop and scale; flip where that keeps the meaning, else rotate; colour jitter and
    greyscale for colour images, and blur for those above 32 pixels (SimCLR's recipe).

    Args:
        images: The data set, for its size and the augmentations that suit it.
    """

    def __init__(self, images: Images) -> None:
        super().__init__()
        from kornia import augmentation as K

        size = tuple(images.train.images.shape[-2:])
        steps: list[nn.Module] = []
        if not images.flip:
            steps.append(K.RandomAffine(degrees=15, p=1.0))
        steps.append(
            K.RandomResizedCrop(
                size, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), cropping_mode="resample"
            )
        )
        if images.flip:
            steps.append(K.RandomHorizontalFlip())
        if images.colour:
            steps += [K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomGrayscale(p=0.2)]
            if min(size) > 32:
                steps.append(K.RandomGaussianBlur((5, 5), (0.1, 2.0), p=0.5))
        else:
            steps.append(K.ColorJitter(brightness=0.4, contrast=0.4, p=0.8))
        self.steps = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uint8 images ``(n, c, h, w)`` into two float views of the same shape."""
        scaled = to_float(images)
        # Half precision would move the pixels that are sampled.
        with float32(images.device):
            a, b = self.steps(torch.cat([scaled, scaled])).chunk(2)
        return a, b


def float32(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which operations on a device are not autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 pixels to [0, 1]."""
    return images.to(torch.float32).div_(255)
