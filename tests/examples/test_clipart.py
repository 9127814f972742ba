"""The clip art as data: on white, square, each drawing once, subjects that are large enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.examples.scripts import load

script = load("clipart")


def test_drawings_lie_on_white_and_are_kept_once(tmp_path: Path):
    for subject, number in (("birds", 4), ("fish", 2), ("unsorted", 9)):
        folder = tmp_path / "source" / subject / "deeper"
        folder.mkdir(parents=True)
        for i in range(number):
            # Transparent black on the left half, opaque red on the right.
            pixels = np.zeros((20, 40, 4), np.uint8)
            pixels[:, 20:] = (255 - i, 0, 0, 255)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / "same.png").write_bytes((folder / "0.png").read_bytes())
        (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    counts = script.prepare(tmp_path / "source", tmp_path / "small", least=5, size=16)
    assert counts == {"birds": 4}
    made = np.asarray(Image.open(tmp_path / "small" / "birds" / "0000.png"))
    assert made.shape == (16, 16, 3)
    assert (made[:, :7] == 255).all()  # transparent, and what makes it square
    assert (made[8, 10:] == (255, 0, 0)).all()
