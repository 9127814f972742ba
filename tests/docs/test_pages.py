"""What the README and the pages show: Python runs, commands have the flags that they are given.

A block of ``pycon`` is a doctest; those of a page share their names. A block of ``python`` is a
script of its own, and one of ``console`` has commands with what they print; those of a page run in
one folder. Where ``<!-- fragment -->`` stands before a block, as of the README's all, it is only
compiled. Of ``bash``, commands are read by their own parsers and not run.
"""

from __future__ import annotations

import csv
import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from hsplugin.cli import _parser
from hsplugin.monitor.options import environment_options

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "examples" / "docs").glob("*.md"))]
FENCE = re.compile(r"^(<!-- fragment -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    fragment: bool

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        fragment = found[1] is not None or page == README
        yield Block(page, line, found[2], found[3], fragment)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def written_in(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


RUN = [block for block in BLOCKS if block.language in ("python", "console") and not block.fragment]
FRAGMENTS = [block for block in written_in("python") if block.fragment]


def commands_of(text: str) -> Iterator[list[str]]:
    """The commands of shell lines, as words; what follows a pipe or a redirection is left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skipped = False
        for word in lexer:
            if word in ("&&", ";"):
                yield words
                words, skipped = [], False
            else:
                skipped |= word in ("|", ">", ">>", "<", "2>")
                words += [] if skipped else [word]
        yield words


COMMANDS = [
    pytest.param(command, id=f"{block.place} {' '.join(command)[:60]}")
    for block in written_in("bash")
    for command in commands_of(block.text)
    if command
]


def test_a_line_of_shell_is_taken_apart() -> None:
    line = "A=1 hsplugin measure 'x y.npy' \\\n  --t 2 > out  # a remark\npip install a && tox run"
    words = ["A=1", "hsplugin", "measure", "x y.npy", "--t", "2"]
    assert list(commands_of(line)) == [words, ["pip", "install", "a"], ["tox", "run"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sessions_print_what_they_show(page: Path) -> None:
    blocks = [block for block in written_in("pycon") if block.page == page]
    # Empty lines in place of the text between them, so that a failure names the line of the page.
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - len(lines)) + block.text.splitlines()
    session = doctest.DocTestParser().get_doctest("\n".join(lines), {}, page.name, str(page), 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(session, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("block", FRAGMENTS, ids=lambda block: block.place)
def test_fragments_compile(block: Block) -> None:
    compile(block.text, block.place, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in RUN), ids=lambda p: p.name)
def test_scripts_and_commands_run(page: Path, tmp_path: Path) -> None:
    for block in (block for block in RUN if block.page == page):
        if block.language == "python":
            run(block, tmp_path, "-c", block.text)
            continue
        for shown in block.text.split("$ ")[1:]:
            command, _, expected = shown.partition("\n")
            program, *arguments = shlex.split(command)
            assert program == "hsplugin"
            printed = run(block, tmp_path, "-m", "hsplugin.cli", *arguments)
            options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            same = doctest.OutputChecker().check_output(expected, printed, options)
            assert same, f"{block.place}: {command} prints\n{printed}"


def run(block: Block, folder: Path, *arguments: str) -> str:
    """What a process of Python prints, or fail with its errors."""
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        # Tables are as wide as the terminal.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{block.place}:\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_flags_they_are_given(command: list[str]) -> None:
    while "=" in command[0]:
        name, _, value = command.pop(0).partition("=")
        if name == "HSPLUGIN_MONITOR":
            environment_options(value)
    program, *arguments = command
    if program == "hsplugin":
        _parser().parse_args(arguments)  # exits where a flag is unknown
    elif program == "python" and arguments[0].startswith("examples/"):
        source = (ROOT / arguments[0]).read_text(encoding="utf-8")
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        assert [flag for flag in flags if f'"{flag}"' not in source] == []
    for extras in re.findall(r"(?:hsplugin|HSPLUGIN|\.)\[([\w,-]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(metadata("hsplugin").get_all("Provides-Extra") or [])


def milliseconds(value: str) -> str:
    number = float(value)
    return f"{number:.2f}" if number < 1 else f"{number:.1f}" if number < 10 else f"{number:.0f}"


@pytest.mark.parametrize(
    ("theirs", "ours"), [("pdist", "hsplugin"), ("lightly-loss", "our-loss")], ids=str
)
def test_the_table_of_times_is_that_of_the_results(theirs: str, ours: str) -> None:
    """Gains are quotients of the speeds beside pdist, which were taken in the same rounds."""
    results = ROOT / "examples" / "results" / "bench"
    machines = []
    for folder in ("xeon/one_thread", "xeon/two_threads", "zen1/one_thread", "zen1/two_threads"):
        with (results / folder / "bench.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["mode"] == "forward+backward"]
        machines.append({(row["contender"], row["n"]): row for row in rows})
    page = (ROOT / "examples" / "docs" / "performance.md").read_text()
    for size in ("64", "128", "256", "512", "1024", "2048", "4096", "8192"):
        times = [milliseconds(machines[0][name, size]["median_ms"]) for name in (theirs, ours)]
        gains = [float(m[ours, size]["ratio"]) / float(m[theirs, size]["ratio"]) for m in machines]
        shown = [f"{gain:.1f}x" if gain < 9.95 else f"{gain:.0f}x" for gain in gains]
        assert f"| {' | '.join([size, *times, *shown])} |" in page
