"""Data that a run cannot be trained on is refused before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsplugin.errors import CommandError
from hsplugin.lab.data import load
from hsplugin.lab.demands import check, check_all
from hsplugin.lab.settings import Machine, RunSettings
from tests.compare.running import error_line


def photos(folder: Path, **classes: int) -> Path:
    """A folder of images, so many of each class."""
    random = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def saved(folder: Path, image: Image.Image, name: str = "x.png", **options: object) -> np.ndarray:
    """What is read of an image of one colour, as the only one of its kind in a folder."""
    image.save(folder / "a" / name, **options)
    images = load(str(folder), None, image_size=8)
    (folder / "a" / name).unlink()
    splits = [split.images for split in (images.train, images.validation, images.test)]
    known = {tuple(pixels.flatten().tolist()) for pixels in KNOWN[folder]}
    (found,) = (
        pixels.numpy()
        for split in splits
        for pixels in split
        if tuple(pixels.flatten().tolist()) not in known
    )
    return found


KNOWN: dict[Path, list[object]] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photos(tmp_path_factory.mktemp("photos"), a=20, b=20)
    images = load(str(folder), None, image_size=8)
    KNOWN[folder] = [
        pixels
        for split in (images.train, images.validation, images.test)
        for pixels in split.images
    ]
    return folder


def test_sixteen_bits_are_scaled_to_eight(folder: Path):
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("x.png", "x.tiff"):
        found = saved(folder, Image.fromarray(levels), name)
        assert np.abs(found - levels / 257).max() <= 1
        assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    swapped = Image.frombytes("I;16B", (8, 8), levels.astype(">u2").tobytes())
    assert (saved(folder, swapped, "x.tiff") == found).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_its_red_green_and_blue(folder: Path, mode: str):
    grey = mode in ("1", "L", "LA")
    colour = (255, 255, 255) if grey else (200, 40, 90)
    image = Image.new("RGB", (8, 8), colour)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    found = saved(folder, image, "x.tiff" if mode == "CMYK" else "x.png")
    assert np.abs(found.astype(int) - np.array(colour)[:, None, None]).max() <= 6


@pytest.mark.filterwarnings("error")
def test_what_is_transparent_keeps_its_colour(folder: Path):
    image = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    assert (saved(folder, image).reshape(3, -1).T == (10, 200, 30)).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    found = saved(folder, palette, transparency=bytes([255, 0]))
    assert (found.reshape(3, -1).T == (10, 200, 30)).all()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.png", b"", "cannot identify"),
        ("x.png", b"\x89PNG\r\n\x1a\n and more", "cannot read"),
        ("x.jpg", b"no image", "cannot identify"),
        ("x.tiff", None, "32-bit numbers have no known range"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, name, content, said):
    path = folder / "b" / name
    if content is None:
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=said) as caught:
        load(str(folder), None)
    path.unlink()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "flags", "said"),
    [
        ({"a": 30}, [], "has one class"),
        ({"a": 30, "b": 0}, [], "valid file for the classes b"),
        ({"test": 30}, [], "has test but no train"),
        ({"a": 30, "b": 2}, ["--labels-per-class", "3"], "class b of .* has only [12] training"),
        ({"a": 30, "b": 30}, ["--batch-size", "49"], "--batch-size 49: .* has 48 training images"),
        ({"a": 30, "b": 30}, ["--batch-size", "8", "--devices", "5"], "5 devices need at least 10"),
        ({"a": 30, "b": 30}, ["--train-size", "49"], "--train-size 49: .* has 48 training images"),
        ({"a": 60, "b": 5}, ["--train-size", "2"], "no training image of class b; --train-size 2"),
        ({"a": 30, "b": 30}, ["--image-size", "5000"], "--image-size must be at most 1024"),
    ],
)
def test_data_that_do_not_suffice_are_refused_before_anything_is_trained(
    capsys, tmp_path, classes, flags, said
):
    data = photos(tmp_path / "data", **classes)
    out = tmp_path / "out"
    flags = ["--data", str(data), "--out", str(out), "--accelerator", "cpu", *flags]
    line = error_line(capsys, *flags, *([] if "--batch-size" in flags else ["--batch-size", "16"]))
    assert re.search(said, line), line
    assert not list(out.glob("runs/*"))


def test_a_split_without_a_class_is_said_or_refused(tmp_path, capsys):
    whole = photos(tmp_path / "whole", a=30, b=30)
    check_all([RunSettings("simclr", data=str(whole), batch_size=40)], Machine())
    assert capsys.readouterr().err == ""
    # A tenth, drawn at random, has none of the rare class.
    rare = photos(tmp_path / "rare", a=60, b=3)
    check_all([RunSettings("simclr", data=str(rare), batch_size=40)], Machine())
    said = capsys.readouterr().err.splitlines()
    assert said and all(re.search("split of .*rare has no image of class b;", one) for one in said)
    given = tmp_path / "given"
    photos(given / "train", a=20, b=20)
    photos(given / "val", a=30, b=0)
    with pytest.raises(CommandError, match=r"val must hold .* classes b"):
        check_all([RunSettings("simclr", data=str(given), batch_size=40)], Machine())


def test_the_largest_batch_is_the_data():
    images = load("digits", None, train_size=100)
    check(RunSettings("simclr", batch_size=100), images)
    with pytest.raises(CommandError, match="--batch-size 101: digits has 100 training images"):
        check(RunSettings("simclr", batch_size=101), images)
    check(RunSettings("untrained", batch_size=101), images)


def test_hidden_folders_are_no_classes_and_dark_sixteen_bits_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = photos(tmp_path / "photos", a=20, b=20)
    (folder / ".ipynb_checkpoints").mkdir()
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(folder / "a" / "scan.png")
    assert load(str(folder), None, image_size=8).names == ("a", "b")
    assert "reach 4095 of 65535" in capsys.readouterr().err
