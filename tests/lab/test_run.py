"""A run's folder: results of earlier versions, and settings that are not mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsplugin.errors import CommandError
from hsplugin.lab.files import write_json
from hsplugin.lab.run import MEASURES, Run, hyperparameters, refuse_mixing
from hsplugin.lab.settings import RunSettings
from hsplugin.provenance import machine_facts


def started(out: Path, settings: RunSettings) -> Run:
    run = Run.of(settings, out)
    run.folder.mkdir(parents=True)
    write_json(run.settings, settings.as_dict())
    return run


def test_a_result_of_an_earlier_version_reads_like_one_of_this(tmp_path):
    # Earlier versions wrote shared settings, defaults and given options as one mapping.
    settings = RunSettings("barlowtwins", lr=1e-3, options={"lambda_param": 0.02})
    run = started(tmp_path, settings)
    together = {"lr": 1e-3, "weight_decay": 1e-4, "dim": 512, "hidden": 512}
    together |= {"lambda_param": 0.02, "gather": False}
    result = {**settings.as_dict(), "options": together, **dict.fromkeys(MEASURES, 90.0)}
    write_json(run.result, {**result, "history": [], "provenance": machine_facts()})
    result = run.read_result()
    assert result["options"] == {"lambda_param": 0.02}
    assert result["defaults"] == {"hidden": 512, "dim": 512}
    assert hyperparameters(result) == {k: v for k, v in together.items() if k != "gather"}
    assert result["knn"] == 90.0


def test_settings_of_an_earlier_version_lack_what_it_did_not_know(tmp_path):
    run = started(tmp_path, RunSettings("simclr"))
    write_json(run.settings, {"method": "simclr", "seed": 0, "options": {}, "epochs": 7})
    there = run.read_settings()
    assert there["epochs"] == 7 and there["image_size"] is None and there["dim"] == 64


def test_only_free_settings_may_differ_in_a_folder(tmp_path):
    started(tmp_path, RunSettings("simclr", epochs=5))
    same = [RunSettings("byol", seed=4, epochs=5)]
    refuse_mixing(tmp_path, same)
    other = [RunSettings("byol", epochs=6)]
    with pytest.raises(CommandError, match="epochs 5 there, 6 asked for"):
        refuse_mixing(tmp_path, other)
    refuse_mixing(tmp_path, other, free={"epochs"})


def test_options_of_one_method_may_not_differ_in_a_folder_unless_they_are_free(tmp_path):
    started(tmp_path, RunSettings("simclr", options={"temperature": 0.1}))
    other = [RunSettings("simclr", seed=1, options={"temperature": 0.2})]
    with pytest.raises(CommandError, match=r"temperature': 0\.2"):
        refuse_mixing(tmp_path, other)
    refuse_mixing(tmp_path, other, options=False)
    refuse_mixing(tmp_path, [RunSettings("dcl", options={"temperature": 0.2})])
