"""solo-learn's own scripts, run from an unmodified clone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.solo.running import (
    HERE,
    SOURCES,
    TINY,
    TWO_PROCESSES,
    checkpoint,
    logged,
    on_cpu,
    python,
)

pytestmark = [pytest.mark.solo, pytest.mark.slow]


def pretrain(solo: Path, cwd: Path, images: Path, *overrides: str, **options: str) -> str:
    devices = options.pop("devices", 'devices="1"')
    return python(
        solo / "main_pretrain.py", *overrides, *on_cpu(images, devices), cwd=cwd, **options
    )


@pytest.fixture(scope="module")
def uninterrupted(
    solo: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Three epochs of each of our configs, found by its name alone."""
    folders = {}
    for name, more in (("align_uniform", []), ("align_uniform_moco", [QUEUE])):
        folders[name] = tmp_path_factory.mktemp(name)
        arguments = ["--config-name", name, "max_epochs=3", "+checkpoint.keep_prev=True", *TINY]
        pretrain(solo, folders[name], images, *arguments, *more)
    return folders


QUEUE = "method_kwargs.queue_size=64"
OURS = ("align_uniform", "align_uniform_moco")


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", OURS)
def test_our_config_trains_in_an_unmodified_clone(
    uninterrupted: dict[str, Path], name: str
) -> None:
    values = logged(uninterrupted[name])
    # Unit vectors are at most 2 apart.
    t = 3 if name == "align_uniform_moco" else 2
    for term, least, most in (("align", 0, 4), ("uniform", -4 * t, 0)):
        epochs = values[f"train_{term}_loss_epoch"]
        assert len(epochs) == 3 and all(least < value < most for value in epochs)
    assert len(values["val_acc1"]) == 3
    [arguments] = uninterrupted[name].rglob("args.json")
    assert json.loads(arguments.read_text())["method"] == name


def test_a_resumed_run_ends_as_the_uninterrupted_one(
    solo: Path, images: Path, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    # Its queue and momentum encoder make it the hardest to resume.
    name = "align_uniform_moco"
    first = checkpoint(uninterrupted[name], 0)
    arguments = ["--config-name", name, "max_epochs=3", *TINY]
    resume = f'+resume_from_checkpoint="{first}"'
    pretrain(solo, tmp_path, images, *arguments, QUEUE, resume)
    ours, theirs = (load(checkpoint(folder, 2)) for folder in (tmp_path, uninterrupted[name]))
    assert ours["global_step"] == theirs["global_step"] == 9
    for key, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], weight), key
    states = [saved["optimizer_states"][0]["state"] for saved in (ours, theirs)]
    assert len(states[1]) > 0
    for index, state in states[1].items():
        assert torch.equal(states[0][index]["momentum_buffer"], state["momentum_buffer"])
    assert ours["hsplugin_random_state"]["random"] == theirs["hsplugin_random_state"]["random"]


def test_a_checkpoint_goes_on_to_linear_evaluation(
    solo: Path, images: Path, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    path = checkpoint(uninterrupted["align_uniform"], 2)
    python(
        solo / "main_linear.py",
        "--config-path",
        solo / "scripts" / "linear" / "imagenet-100",
        "--config-name",
        "simclr",
        *on_cpu(images),
        "wandb.enabled=False",
        "auto_resume.enabled=False",
        "max_epochs=1",
        "pretrain_method=align_uniform",
        f'pretrained_feature_extractor="{path}"',
        cwd=tmp_path,
    )
    assert logged(tmp_path)["val_acc1"]
    weights = load(checkpoint(tmp_path, 0))["state_dict"]
    pretrained = load(path)["state_dict"]
    assert torch.equal(weights["backbone.conv1.weight"], pretrained["backbone.conv1.weight"])


@pytest.mark.usefixtures("master_port")
def test_two_processes_train_one_model(solo: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["--config-name", "align_uniform_moco", "max_epochs=1", *TINY, QUEUE]
    pretrain(solo, tmp_path, images, *arguments, devices=TWO_PROCESSES)
    saved = load(checkpoint(tmp_path, 0))
    # 48 images by two processes of 16 each: one step, as an uneven rest is dropped.
    assert saved["global_step"] == 1
    assert int(saved["state_dict"]["queue_ptr"]) == 32


@pytest.mark.usefixtures("master_port")
def test_two_processes_take_the_step_of_one_with_the_whole_batch(
    solo: Path, tmp_path: Path
) -> None:
    weights = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        arguments = (HERE / "ddp_step.py", solo, "align_uniform", processes, out)
        python(*arguments, cwd=tmp_path, PYTHONPATH=SOURCES)
        weights.append(load(out))
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, rtol=1e-9, atol=1e-12, msg=key)


def test_a_stock_config_trains_our_method_by_name(solo: Path, images: Path, tmp_path: Path) -> None:
    pretrain(
        solo,
        tmp_path,
        images,
        "--config-path",
        str(solo / "scripts" / "pretrain" / "cifar"),
        "--config-name",
        "byol",
        "method=byol_au",
        "+method_kwargs.align_uniform.weight=0.1",
        "max_epochs=1",
        "wandb.enabled=False",
        "auto_resume.enabled=False",
        "+limit_train_batches=1",
    )
    values = logged(tmp_path)
    assert values["train_align_loss_epoch"] and values["train_neg_cos_sim_epoch"]


def test_the_checkout_stays_as_it_was(solo: Path, uninterrupted: dict[str, Path]) -> None:
    import subprocess

    status = ["git", "-C", str(solo), "status", "--porcelain"]
    assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == ""


def test_solo_learns_own_tests_pass_with_the_plugin_installed(solo: Path, tmp_path: Path) -> None:
    # Those of the losses, the base class, linear evaluation and the method that ours derives from.
    methods = (f"tests/methods/test_{name}.py" for name in ("base", "linear", "simclr"))
    out = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={solo}"),
        *("tests/losses", *methods),
        cwd=solo,
    )
    assert "16 passed" in out


@pytest.mark.parametrize("name", OURS)
def test_solo_learns_generic_method_test_passes_for_ours(
    solo: Path, tmp_path: Path, name: str
) -> None:
    """Their test of the architecture that ours shares, with ours in its place."""
    stock = {"align_uniform": "simclr", "align_uniform_moco": "mocov2plus"}[name]
    stock_class = {"simclr": "SimCLR", "mocov2plus": "MoCoV2Plus"}[stock]
    script = f"""
import sys
sys.path.insert(0, {str(solo)!r})
import tests.methods.test_{stock} as theirs
from hsplugin_solo import register
from solo.methods import METHODS
register()
theirs.{stock_class} = METHODS[{name!r}]
theirs.test_{stock}()
print("passed with", theirs.{stock_class}.__name__)
"""
    assert "passed with AlignUniform" in python("-c", script, cwd=tmp_path)
