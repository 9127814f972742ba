"""Every command of the documentation has a rule, and rules shorten commands as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walk_through.commands import Command, commands_of, pages
from tests.walk_through.rules import NEEDS, RULES, Rule, rule_for

COMMANDS = [command for page in pages() for command in commands_of(page)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_every_command_is_run_or_listed(command: Command) -> None:
    rule = rule_for(command.text)
    assert rule, f"{command.place}: no rule in tests/walk_through/rules.py for {command.text}"
    rule.shortened(command.text)


def test_what_rules_need_can_be_found_out() -> None:
    assert {rule.needs for rule in RULES} <= {"", *NEEDS}


def test_commands_are_joined_and_remarks_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\n# remark\nhsplugin a \\\n  --b 1\n\nhsplugin c  # d\n```\n```python\nx\n```\n"
    )
    assert [(c.line, c.text) for c in commands_of(page)] == [
        (3, "hsplugin a --b 1"),
        (6, "hsplugin c  # d"),
    ]


@pytest.mark.parametrize(
    ("command", "short"),
    [
        ("run", "run --m 2 --n 1"),
        ("run --n 50 60 --k --m 3", "run --n 1 --k --m 3"),
        ("run --n=50 && run2 # --m 4", "run --n 1 && run2 # --m 4"),
        ("run --nn 5 --gone a b", "run --m 2 --n 1 --nn 5 "),
    ],
)
def test_flags_are_replaced_or_added(command: str, short: str) -> None:
    rule = Rule("^run", flags={"--n": "1", "--gone": ""}, defaults={"--m": "2"})
    assert rule.shortened(command) == short


@pytest.mark.parametrize(
    ("command", "short"),
    [
        ("pip install 'hsplugin[lightly]'", "pip install 'CLONE[lightly]'"),
        ("pip install hsplugin", "pip install 'CLONE'"),
        ("pip install 'PATH_TO_HSPLUGIN[solo]'", "pip install 'CLONE[solo]'"),
        ("pip install -e '.[all,dev]'", "pip install -e '.[all,dev]'"),
        ("pip install 'hsplugin[all] @ git+https://x.org/y'", "pip install 'CLONE[all]'"),
    ],
)
def test_hsplugin_is_installed_from_the_clone(command: str, short: str) -> None:
    rule = rule_for(command)
    assert rule and rule.shortened(command) == short
