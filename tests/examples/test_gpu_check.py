"""The check of the CUDA path runs to its end without a GPU and reports what it measured."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
import torch

from tests.examples import scripts

SMALL = ("--device", "cpu", "--sizes", "128x8", "--large", "256x8", "--more", "--small")
SMALL = (*SMALL, "--seconds", 0, "--no-tests")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "gpu_check.csv").open() as file:
        return list(csv.DictReader(file))


def test_what_fails_is_noted_and_the_rest_measured(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    scripts.run("gpu_check", *SMALL, "--contenders", "triton", "tiled", "--out", tmp_path)
    rows = rows_of(tmp_path)
    by_tiles = [row for row in rows if row["what"] == "tiled"]
    assert [(row["precision"], row["mode"]) for row in by_tiles] == [
        (precision, mode)
        for precision in ("bfloat16", "float16", "tf32", "float32")
        for mode in ("forward+backward", "forward")
    ]
    for row in by_tiles:
        assert float(row["median_ms"]) > 0 and float(row["value_error"]) < 1e-6
        assert (row["gradient_error"] == "") == (row["mode"] == "forward")
    refused = [row for row in rows if row["what"] == "triton"]
    assert {row["n"] for row in refused} == {"128", "256"}
    for row in refused:
        why = "cannot take" if row["mode"] == "forward+backward" else "not tried"
        assert why in row["note"] and row["median_ms"] == ""
    assert all(float(row["rate"]) > 0 for row in rows if row["what"] in ("copy", "product"))
    assert "cannot take" in (tmp_path / "summary.md").read_text()


def test_nothing_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    scripts.run("gpu_check", *SMALL, "--minutes", 0, "--out", tmp_path)
    assert {row["note"] for row in rows_of(tmp_path)} == {"no time left"}


def test_a_process_that_crashes_or_hangs_costs_only_what_it_had_left(tmp_path: Path) -> None:
    example = scripts.load("gpu_check")
    args = argparse.Namespace(out=tmp_path, seconds=0, end=float("inf"))
    if not torch.cuda.is_available():
        args.device = "cuda"
        crashed = example.measured_apart("tiled", 64, 8, args)
        assert len(crashed) == 8 and all("exit 2" in row.note for row in crashed)
    args.device, example.LONGEST = "cpu", 1e-3
    hung = example.measured_apart("tiled", 64, 8, args)
    assert len(hung) == 8 and all("not done after" in row.note for row in hung)


@pytest.mark.slow
def test_kernels_are_compared_with_float64_and_attention(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    options = ("--contenders", "triton", "attention", "--out", tmp_path)
    scripts.run("gpu_check", *SMALL, *options)
    kernels = [row for row in rows_of(tmp_path) if row["what"] == "triton"]
    assert len(kernels) == 16
    for row in kernels:
        allowed = {
            "bfloat16": (1e-6, 1e-2),
            "float16": (1e-6, 1e-3),
            "tf32": (1e-3, 1e-3),
            "float32": (1e-6, 1e-6),
        }
        value_error, gradient_error = allowed[row["precision"]]
        assert float(row["value_error"]) < value_error
        assert row["gradient_error"] == "" or float(row["gradient_error"]) < gradient_error
    assert "of one forward of attention" in (tmp_path / "summary.md").read_text()
