"""hsplugin compare through solo-learn's own main_pretrain.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.solo.running import python

FLAGS = "--framework solo --methods simclr --train-size 100 --epochs 1 --batch-size 50 --seeds 0"


@pytest.mark.slow
@pytest.mark.solo
def test_a_method_of_solo_learn_is_trained_scored_and_not_trained_again(solo: Path, tmp_path: Path):
    command = ["-m", "hsplugin.cli", "compare", *FLAGS.split(), "--accelerator", "cpu"]
    # A relative folder: main_pretrain.py is started elsewhere.
    command += ["--threads", "1", "--solo-checkout", str(solo), "--out", "out"]
    python(*command, cwd=tmp_path)
    with (tmp_path / "out" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["method"], row["framework"]) == ("simclr", "solo")
    assert 0 <= float(row["alignment"]) <= 4 and float(row["uniformity_optimum"]) < -3.9
    assert float(row["linear"]) > 20  # ten classes
    facts = json.loads(row["provenance"])
    assert facts["solo_command"][1] == str(solo / "main_pretrain.py")
    (result,) = tmp_path.glob("out/runs/*/result.json")
    before = result.stat().st_mtime_ns
    python(*command, cwd=tmp_path)
    assert result.stat().st_mtime_ns == before
    assert not (result.parent / "images").exists()
