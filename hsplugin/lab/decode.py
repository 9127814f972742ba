"""A folder of images, one folder per class, as arrays of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hsplugin.errors import CommandError, remark

if TYPE_CHECKING:
    from PIL import Image


def decode(folder: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images of 8 bits and ``size`` pixels a side, their labels, and the classes' names.

    Raises:
        CommandError: An image cannot be read, or there are too few.
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):  # type: ignore[misc]
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            # Such as those that Jupyter leaves.
            names = [name for name in super().find_classes(directory)[0] if name[0] != "."]
            return names, {name: number for number, name in enumerate(names)}

    try:
        listed = Visible(str(folder))
    except OSError as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise CommandError(f"{folder} must hold images in one folder per class: {reason}") from None
    if len(listed) < 20:
        raise CommandError(f"{folder} holds {len(listed)} images; at least 20 are needed")
    brightest = 0
    pixels = np.empty((len(listed), 3, size, size), np.uint8)
    for row, (path, _) in enumerate(listed.samples):
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I;16"):
                    brightest = max(brightest, int(np.asarray(image).max()))
                fitted = ImageOps.fit(_eight_bit(image), (size, size))
        except Exception as error:  # of every kind, by the format and what is damaged
            reason = str(error).split("\n")[0] or type(error).__name__
            raise CommandError(f"cannot read {path} ({reason}); repair or remove it") from None
        pixels[row] = np.asarray(fitted).transpose(2, 0, 1)
    if 0 < brightest < 2**15:
        remark(
            f"the 16-bit images of {folder} reach {brightest} of 65535, and of 16 bits "
            "the upper 8 are kept; scale them to the full range"
        )
    return torch.from_numpy(pixels), torch.tensor(listed.targets), listed.classes


def _eight_bit(image: Image.Image) -> Image.Image:
    """Red, green and blue of an image in 8 bits each; what is transparent keeps its colour."""
    import PIL.Image

    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit numbers have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow would cut off all above 255; of 16-bit colours it keeps the upper byte, too.
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
