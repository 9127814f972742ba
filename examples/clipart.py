"""Debian's openclipart-png as a colour data set for `hsplugin compare`: small images on white.

The package holds 8121 drawings in the public domain, in folders by subject. Kept are the subjects
with at least 100 drawings, each drawing in 64x64 pixels on a white ground, without the few that are
too large to be opened safely and those whose file is the same as another's.

    apt-get install openclipart-png
    python examples/clipart.py clipart
    hsplugin compare --data clipart --image-size 32
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from pathlib import Path

from PIL import Image, ImageOps

SOURCE = Path("/usr/share/openclipart/png")
# Folders that are no subject.
MIXED = ("special", "unsorted")


def prepare(source: Path, target: Path, least: int = 100, size: int = 64) -> dict[str, int]:
    """Write the images of every subject with enough of them.

    Args:
        source: A folder of subjects.
        target: Where to put ``SUBJECT/NUMBER.png``.
        least: How many images a subject needs.
        size: Pixels a side.

    Returns:
        How many images each subject has.
    """
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    counts, seen = {}, set()
    for folder in sorted(path for path in source.iterdir() if path.name not in MIXED):
        paths = sorted(folder.rglob("*.png"))
        if len(paths) < least:
            continue
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        counts[folder.name] = 0
        for path in paths:
            digest = hashlib.sha256(path.read_bytes()).digest()
            small = None if digest in seen else on_white(path, size)
            seen.add(digest)
            if small is not None:
                small.save(target / folder.name / f"{counts[folder.name]:04}.png")
                counts[folder.name] += 1
    return counts


def on_white(path: Path, size: int) -> Image.Image | None:
    """A drawing as a square on white; None if it cannot be opened safely."""
    try:
        with Image.open(path) as image:
            drawing = ImageOps.contain(image.convert("RGBA"), (size, size))
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    return square.convert("RGB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--source", type=Path, default=SOURCE)
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        parser.error(f"{args.source} is missing: apt-get install openclipart-png, or --source")
    counts = prepare(args.source, args.target)
    for name, count in counts.items():
        print(f"{count:>6}  {name}")
    print(f"{sum(counts.values()):>6}  in all, in {args.target}")


if __name__ == "__main__":
    main()
