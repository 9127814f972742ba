"""The example learns digits and prints what it watched."""

from __future__ import annotations

import re

import pytest

from tests.examples import scripts

pytest.importorskip(
    "stable_pretraining", reason="stable-pretraining is tested in its own environment"
)


def test_digits_are_recognised_and_both_keys_are_watched() -> None:
    printed = scripts.run("spt_digits", "--epochs", 2)
    values = dict(re.findall(r"^(\w+/\w+) +(-?[\d.]+)$", printed, flags=re.MULTILINE))
    assert float(values["eval/knn_accuracy"]) > 0.5
    for key in ("backbone", "projector"):
        assert 0 < float(values[f"{key}/alignment"]) < 4
        assert -8 < float(values[f"{key}/val_uniformity"]) < 0
