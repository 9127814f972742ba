"""Backbones and the augmentation that every method shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hsplugin.compare.data import Images


def backbone(name: str, images: Images) -> tuple[nn.Module, int]:
    """Build an untrained encoder.

    Args:
        name: ``"small-conv"``.
        images: The data set, for its channels and size.

    Returns:
        The module, mapping ``(n, channels, height, width)`` to ``(n, features)``, and the number
        of features.
    """
    _, channels, height, _ = images.train.images.shape
    # Images of 8x8 pixels need no stride in the first layer, and half the channels will do.
    if height <= 16:
        return small_conv(channels, (16, 32, 64, 128), stem_stride=1), 128
    return small_conv(channels, (32, 64, 128, 256), stem_stride=2), 256


def small_conv(channels: int, widths: Sequence[int], stem_stride: int) -> nn.Module:
    """Four 3x3 convolutions with batch norm, the last two of stride 2, then the image's mean.

    With the larger widths, 12 million multiply-adds for a 28x28 image: an epoch of 10000 images
    with two views takes seconds on two CPU cores.
    """
    layers: list[nn.Module] = []
    before = channels
    for width, stride in zip(widths, (stem_stride, 1, 2, 2), strict=True):
        layers += [
            nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Augment(nn.Module):
    """Two random views of a batch, drawn per image and computed on whole tensors.

    Crop and scale always; mirror where that keeps the meaning; rotation for images that must not
    be mirrored; colour jitter, grey and blur for colour images (SimCLR's recipe).

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
        else:
            steps.append(K.ColorJitter(brightness=0.4, contrast=0.4, p=0.8))
        self.steps = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uint8 images ``(n, c, h, w)`` into two float views of the same shape."""
        scaled = to_float(images)
        return self.steps(scaled), self.steps(scaled)


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 pixels to [0, 1]."""
    return images.to(torch.float32).div_(255)
