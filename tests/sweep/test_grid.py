"""Which encoders a grid stands for, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsplugin.errors import CommandError
from hsplugin.lab.methods import METHODS, options_of
from hsplugin.sweep.grid import DEFAULT_GRID, align_share, encoders, read_grid

BASE = {"data": "digits", "epochs": 5}


def test_the_default_grid_has_at_least_sixty_different_encoders():
    chosen = encoders(DEFAULT_GRID, BASE)
    assert len(chosen) >= 60
    assert len({settings.name for settings in chosen}) == len(chosen)


def test_a_grid_is_every_combination_of_its_values():
    grid = {"method": ["simclr"], "temperature": [0.1, 0.2], "dim": [8, 16], "lr": [1e-3]}
    chosen = encoders([grid], BASE)
    found = {(s.options["temperature"], s.dim, s.lr, s.epochs) for s in chosen}
    assert found == {(0.1, 8, 1e-3, 5), (0.1, 16, 1e-3, 5), (0.2, 8, 1e-3, 5), (0.2, 16, 1e-3, 5)}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_alignment_becomes_two_weights(share: float):
    (settings,) = encoders([{"method": ["align_uniform"], "align_share": [share]}], BASE)
    options = options_of("align_uniform", settings.options, settings.shared())
    assert options["align_weight"] + options["uniform_weight"] == pytest.approx(2)
    assert align_share(options) == pytest.approx(share)


def test_an_encoder_that_two_grids_ask_for_is_trained_once():
    default_t = METHODS["align_uniform"].defaults["t"]
    grids = [{"method": ["align_uniform"], "t": [default_t, 4.0]}, {"method": ["align_uniform"]}]
    assert len(encoders(grids, BASE)) == 2


def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another():
    draws = [encoders(DEFAULT_GRID, BASE, sample=9, seed=seed) for seed in (1, 1, 2)]
    names = [[settings.name for settings in draw] for draw in draws]
    assert len(set(names[0])) == 9
    assert names[0] == names[1] != names[2]


def test_a_method_keeps_its_own_dimension_unless_the_grid_names_one():
    if "dim" not in METHODS["barlowtwins"].defaults:
        pytest.skip("Barlow Twins shares the dimension")
    plain, named = encoders(
        [{"method": ["barlowtwins"]}, {"method": ["barlowtwins"], "dim": [32]}], {**BASE, "dim": 64}
    )
    dims = [
        options_of("barlowtwins", settings.options, settings.shared())["dim"]
        for settings in (plain, named)
    ]
    assert dims == [METHODS["barlowtwins"].defaults["dim"], 32]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"temperature": [0.1]}, "must name its method"),
        ({"method": ["simclrr"]}, "did you mean simclr"),
        ({"method": ["simclr"], "temprature": [0.1]}, "did you mean temperature"),
        ({"method": ["simclr"], "align_share": [0.5]}, "align_share"),
        ({"method": ["align_uniform"], "align_share": [1.5]}, "from 0 to 1"),
        ({"method": ["simclr"], "epochs": [0]}, "at least 1"),
        ({"method": ["simclr"], "dim": ["many"]}, "must be an integer"),
    ],
)
def test_what_a_grid_cannot_mean_is_refused_in_one_line(grid, said):
    with pytest.raises(CommandError, match=said) as caught:
        encoders([grid], BASE)
    assert "\n" not in str(caught.value)


def test_a_file_holds_one_grid_or_several_and_single_values(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text("method: simclr\ntemperature: [0.1, 0.2]\n")
    assert read_grid(file) == [{"method": ["simclr"], "temperature": [0.1, 0.2]}]
    file.write_text("- {method: simclr}\n- {method: [vicreg]}\n")
    assert read_grid(file) == [{"method": ["simclr"]}, {"method": ["vicreg"]}]


@pytest.mark.parametrize("content", ["", "[]", "simclr", "{a: [", "- 1"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, content: str):
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    with pytest.raises(CommandError, match=r"grid\.yaml") as caught:
        read_grid(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(CommandError, match="cannot read"):
        read_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("{method: []}", "method has no values"),
        ("{method: [simclr], temperature: []}", "temperature has no values"),
        ("{method: [[simclr]]}", "unknown method"),
        ("{method: [simclr], framework: [solo]}", "framework"),
    ],
)
def test_grids_of_the_wrong_kind_are_refused_in_one_line(tmp_path, grid, said):
    path = tmp_path / "grid.yaml"
    path.write_text(grid)
    with pytest.raises(CommandError, match=said) as caught:
        encoders(read_grid(path), {})
    assert "\n" not in str(caught.value)
