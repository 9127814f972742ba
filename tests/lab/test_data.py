"""Reading data sets: the files of Fashion-MNIST, and how damaged ones are refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hsplugin.lab.data import load
from tests.compare.running import error_line


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """Four IDX files of random images, in the layout of Fashion-MNIST; two of them gzipped."""
    random = np.random.default_rng(0)
    for part, count, suffix in (("train", 5200, ".gz"), ("t10k", 100, "")):
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte{suffix}", random.integers(0, 256, (count, 28, 28))
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", random.integers(0, 10, count))
    return tmp_path


def test_idx_files_are_read_plain_and_gzipped(clothes: Path):
    images = load("fashion-mnist", str(clothes))
    assert len(images.train) == 200 and len(images.validation) == 5000 and len(images.test) == 100
    assert images.train.images.shape == (200, 1, 28, 28)
    together = torch.cat([images.train.images, images.validation.images])
    random = np.random.default_rng(0).integers(0, 256, (5200, 28, 28)).astype(np.uint8)
    assert sorted(together.flatten(1).sum(1).tolist()) == sorted(
        random.reshape(5200, -1).sum(1, dtype=np.int64).tolist()
    )


def test_a_missing_or_damaged_data_file_is_answered_in_one_line(capsys, clothes, tmp_path):
    flags = ["--data", "fashion-mnist", "--data-dir", str(clothes), "--out", str(tmp_path / "out")]
    images = clothes / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    assert "train-images-idx3-ubyte.gz is truncated or damaged" in error_line(capsys, *flags)
    images.unlink()
    assert "no train-images-idx3-ubyte" in error_line(capsys, *flags)
    plain = clothes / "t10k-images-idx3-ubyte"
    images.write_bytes(whole)
    plain.write_bytes(plain.read_bytes()[:-5])
    assert "t10k-images-idx3-ubyte is truncated or damaged: 78395" in error_line(capsys, *flags)
