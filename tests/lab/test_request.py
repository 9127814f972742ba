"""What commands find out themselves: precision and device."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from hsplugin.compare.command import DEFAULTS, add_arguments
from hsplugin.errors import CommandError
from hsplugin.flags import complete
from hsplugin.lab import request
from hsplugin.lab.files import write_json
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings


def asked(out: Path, **flags: object) -> argparse.Namespace:
    return argparse.Namespace(**{**DEFAULTS, "accelerator": "cpu", "out": str(out), **flags})


def settled(out: Path, **flags: object) -> str:
    return request.shared_settings(asked(out, **flags))["precision"]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        # Intel's processors can, but float32 is faster there.
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name : bf16\n", False),
        ("", False),
    ],
)
def test_a_processor_tells_whether_it_multiplies_bfloat16(tmp_path, listed, found):
    facts = tmp_path / "cpuinfo"
    facts.write_text(listed)
    assert request._multiplies_bfloat16("cpu", facts) is found
    assert not request._multiplies_bfloat16("cpu", tmp_path / "none")
    assert not request._multiplies_bfloat16("mps", facts)


def test_auto_is_the_precision_of_the_folder_else_what_suits_the_hardware(tmp_path):
    suits = "bf16-mixed" if request._multiplies_bfloat16("cpu") else "32-true"
    assert settled(tmp_path) == settled(tmp_path, precision="auto") == suits
    assert settled(tmp_path, framework="solo") == "32-true"
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        run = Run.of(RunSettings("simclr", precision=precision), out)
        run.folder.mkdir(parents=True)
        write_json(run.settings, {"method": "simclr", "options": {}, "precision": precision})
        assert settled(out) == precision
        # What is asked for is not overruled: the folder then refuses it.
        assert settled(out, precision="32-true") == "32-true"
    # Folders of the first version, whose settings always had a precision, keep their names.
    assert RunSettings("simclr", precision="32-true").name == RunSettings("simclr").name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"precision": "16-mixed"}, "--precision 16-mixed needs a GPU"),
        ({"precision": "bf16"}, "Known: 16-mixed, 32-true, bf16-mixed"),
        ({"accelerator": "cpuu"}, "did you mean cpu"),
        *(
            [({"accelerator": "mps"}, "--accelerator mps: this torch finds no such device")]
            if not torch.backends.mps.is_available()
            else []
        ),
    ],
)
def test_what_the_hardware_cannot_do_is_refused_by_its_flag(tmp_path, flags, said):
    with pytest.raises(CommandError, match=said):
        request.shared_settings(asked(tmp_path, **flags))


def placed(**flags: object) -> Machine:
    return request.machine(asked(Path("out"), **{"accelerator": None, **flags}))


def test_gpus_per_run_stand_for_accelerator_and_devices():
    on_slurm = {"cluster": "slurm", "accelerator": "auto"}
    for flags, expected in [
        ({}, ("gpu", 1)),
        ({"gpus_per_run": 4}, ("gpu", 4)),
        ({"gpus_per_run": 0}, ("cpu", 1)),
        ({"gpus_per_run": 0, "devices": 2}, ("cpu", 2)),
        ({"accelerator": "cpu", "devices": 2}, ("cpu", 2)),
        ({"accelerator": "cuda", "devices": 3}, ("gpu", 3)),
    ]:
        found = placed(**{**on_slurm, **flags})
        assert (found.accelerator, found.devices) == expected
    assert placed(accelerator="auto", gpus_per_run=0).accelerator == "cpu"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"gpus_per_run": 2, "devices": 3}, "--gpus-per-run 2 contradicts"),
        ({"gpus_per_run": 2, "accelerator": "cpu"}, "--gpus-per-run 2 contradicts"),
        ({"gpus_per_run": 0, "accelerator": "gpu"}, "--gpus-per-run 0 contradicts"),
        ({"gpus_per_run": -1}, "--gpus-per-run must be at least 0"),
        ({"nodes": 2}, "--nodes needs --cluster slurm"),
        ({"partition": "gpu"}, "--partition needs --cluster slurm"),
        ({"slurm": ["qos=high"]}, "--slurm needs --cluster slurm"),
        ({"cluster": "pbs"}, "--cluster"),
        ({"cluster": "slurm", "slurm": ["=high"]}, "write KEY=VALUE"),
        ({"cluster": "slurm", "framework": "solo", "devices": 2}, "one device"),
    ],
)
def test_contradictions_of_the_cluster_flags_are_refused(flags, said):
    with pytest.raises(CommandError, match=said):
        placed(**{"accelerator": "auto", **flags})


def test_a_config_file_keeps_the_text_too(tmp_path):
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "cluster: slurm\naccelerator: cpu\ncompile: true\n"
        "slurm: {begin: 16:00, account: 0123, exclusive: true}\n"
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = complete(parser.parse_args(["--config", str(config)]), add_arguments, DEFAULTS)
    assert args.compile is True
    expected = {"begin": "16:00", "account": "0123", "exclusive": True}
    assert request.machine(args).slurm == expected
    config.write_text("slurm: {licenses: [a, b]}")
    with pytest.raises(CommandError, match="slurm must map parameters"):
        complete(parser.parse_args(["--config", str(config)]), add_arguments, DEFAULTS)


def test_parameters_of_jobs_keep_the_text_that_sbatch_is_to_read():
    given = ["qos=high", "exclusive=true", "signal_delay_s=60", "time=1:30:00", "mem=007"]
    assert placed(cluster="slurm", accelerator="cpu", slurm=given).slurm == {
        "qos": "high",
        "exclusive": True,
        "signal_delay_s": 60,
        "time": "1:30:00",
        "mem": "007",
    }
