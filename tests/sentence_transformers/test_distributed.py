"""Processes with parts of a batch train as one with the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sentence_transformers import ddp_train

pytest.importorskip("sentence_transformers")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_of_two_pairs_train_as_one_of_four(
    model_folder: Path, master_port: int, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    ddp_train.train(str(model_folder), one, batch_size=4)
    launch = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={master_port}", "-m"]
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", *launch, ddp_train.__name__, str(model_folder), str(two), "2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    weights = torch.load(two)
    for name, value in torch.load(one).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
