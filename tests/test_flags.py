"""One table of settings: flags, config file, defaults and bounds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsplugin.errors import CommandError
from hsplugin.flags import add_flags, check, complete, defaults_of, flag, setting


@dataclass(frozen=True)
class Kettle:
    litres: float = setting(1.5, "water", "how much")
    minimum_heat: int = setting(3, "heat", "lowest level", least=1)
    kind: str = setting("steel", "water", "material", choices=("steel", "glass"))
    cups: int | None = setting(None, "water", "cups to fill", least=0, unset="as many as fit")
    name: str = "no flag"


DEFAULTS = {**defaults_of(Kettle), "tags": [], "set": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, Kettle, defaults=DEFAULTS)
    parser.add_argument("--tags", nargs="+")


def parsed(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(complete(parser.parse_args(argv), add_arguments, DEFAULTS))


def test_each_field_is_a_flag_of_its_type_and_help():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for part in (
        "--litres LITRES how much; default: 1.5",
        "--minimum-heat MINIMUM_HEAT lowest level; default: 3",
        "--kind {steel,glass} material; default: steel",
        "--cups CUPS cups to fill; default: as many as fit",
    ):
        assert part in text
    assert "no flag" not in text
    assert parsed("--litres", "2", "--minimum-heat", "5")["litres"] == 2.0


def test_a_file_comes_before_the_defaults_and_flags_before_the_file(tmp_path: Path):
    path = tmp_path / "kettle.yaml"
    path.write_text("litres: 0.5\nminimum-heat: 2\ntags: [a, b]\ncups: null\n")
    args = parsed("--config", str(path), "--litres", "3")
    assert (args["litres"], args["minimum_heat"], args["kind"]) == (3.0, 2, "steel")
    assert args["tags"] == ["a", "b"] and args["cups"] is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("litre: 1\n", "did you mean litres"),
        ("name: copper\n", "unknown flag 'name'"),
        ("minimum_heat: hot\n", "invalid int value: 'hot'"),
        ("kind: clay\n", "invalid choice: 'clay'"),
        ("- 1\n", "must map flags to values"),
        ("litres: {a: 1}\n", "invalid float value"),
        ("litres: true\n", "invalid float value: 'True'"),
        ("kind: no\n", "invalid choice: 'False'"),
        ("{", "is not YAML"),
        ("!!int x", "is not YAML"),
        ("litres: 1\nlitres: 2\n", "litres is given twice"),
        ("minimum-heat: 1\nminimum_heat: 2\n", "--minimum-heat is given twice"),
        ("set: 3\n", "set must map methods to their options"),
        ("set: {simclr: 3}\n", "set must map methods to their options"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line_by_its_name(tmp_path, content, said):
    path = tmp_path / "kettle.yaml"
    path.write_text(content)
    with pytest.raises(CommandError, match=said) as caught:
        parsed("--config", str(path))
    assert "kettle.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_bounds_are_checked_under_the_name_of_the_flag():
    with pytest.raises(ValueError, match="--minimum-heat must be at least 1, got 0"):
        check(Kettle, {"minimum_heat": 0}, flag)
    with pytest.raises(ValueError, match="litres must be above 0"):
        check(Kettle, {"litres": 0.0})
    with pytest.raises(TypeError, match="litres must be a number"):
        check(Kettle, {"litres": None})
    check(Kettle, {"cups": None, "something else": object()})
