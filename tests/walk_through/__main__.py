"""Run every command of the documentation as a new user would, on small data, and table the results.

    python -m tests.walk_through [--borrow] [--downloads] [--page install.md] [--out DIR]

It clones this repository, sets up a new virtual environment with a home of its own, and runs what
stands in the ``bash`` blocks of README.md and examples/docs, page by page. ``rules.py`` says what
is shortened and what cannot be run. Exits with 1 if a command fails.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.walk_through.commands import ROOT, Command, commands_of, files_of, pages
from tests.walk_through.rules import NEEDS, SOLO_LEARN, Rule, rule_for

HERE = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/hsplugin/hsplugin"
SOLO_COMMIT = "9187ea39c2c3f43c455ab06664d2b019a9802954"


class Result(NamedTuple):
    """What became of a command."""

    place: str
    command: str
    status: str
    seconds: float


class Walk:
    """A folder with a clone, an environment, a home and the inputs; runs commands in it."""

    def __init__(self, folder: Path, borrow: bool, downloads: bool, timeout: float) -> None:
        self.folder, self.downloads, self.timeout = folder, downloads, timeout
        self.clone, self.small = folder / "hsplugin", folder / "small"
        self.solo = folder / "solo-learn"
        venv, home = folder / "venv", folder / "home"
        home.mkdir(parents=True)
        inherited = ("CI", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.environment = {k: v for k, v in os.environ.items() if k not in inherited}
        # The repository is cloned from here under its public address.
        number = int(self.environment.get("GIT_CONFIG_COUNT", "0"))
        self.environment |= {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(venv / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
            "GIT_CONFIG_COUNT": str(number + 1),
            f"GIT_CONFIG_KEY_{number}": f"url.{ROOT}.insteadOf",
            f"GIT_CONFIG_VALUE_{number}": REPOSITORY,
        }
        self.prepare(["git", "clone", "--quiet", REPOSITORY, str(self.clone)])
        self.prepare([sys.executable, "-m", "venv", str(venv)])
        if borrow:
            packages = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
            [site] = venv.glob("lib/python*/site-packages")
            (site / "borrowed.pth").write_text("\n".join(dict.fromkeys(packages)))
        extras = "" if borrow else "[all]"
        quiet = ["--quiet", *(["--no-deps"] if borrow else [])]
        self.prepare(["python", "-m", "pip", "install", *quiet, f"{self.clone}{extras}"])
        self.prepare(["python", str(HERE / "inputs.py"), str(self.small)])

    def prepare(self, command: list[str]) -> None:
        """Run what must succeed before the walk can begin."""
        print("$", shlex.join(command), flush=True)
        path = self.environment["PATH"]
        program = shutil.which(command[0], path=path) or command[0]
        subprocess.run([program, *command[1:]], env=self.environment, check=True)

    @cache  # noqa: B019 - there is one walk in a process
    def has(self, need: str) -> bool:
        """Whether this machine has what a rule needs."""
        return (need == "downloads" and self.downloads) or NEEDS[need][1]()

    @cache  # noqa: B019
    def solo_checkout(self) -> None:
        """Clone solo-learn where rules expect it."""
        self.prepare(["git", "clone", "--quiet", SOLO_LEARN, str(self.solo)])
        self.prepare(["git", "-C", str(self.solo), "checkout", "--quiet", SOLO_COMMIT])

    def page(self, page: Path) -> Iterator[Result]:
        """Run the commands of a page, one after another, in one shell and a folder of its own."""
        commands = list(commands_of(page))
        if not commands:
            return
        place = self.folder / "pages" / page.stem
        if any(REPOSITORY in command.text for command in commands):  # the page clones it itself
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(exist_ok=True)
            self.prepare(["git", "clone", "--quiet", REPOSITORY, str(place)])
        shutil.copytree(self.small, place, dirs_exist_ok=True)
        for name, text in files_of(page):
            (place / name).write_text(text)
        state = place.with_suffix(".state")
        state.write_text(f"cd {shlex.quote(str(place))}\n")
        for command in commands:
            rule = rule_for(command.text)
            if rule is None:
                yield Result(command.place, command.text, "FAILED: no rule in rules.py", 0.0)
            elif rule.never or (rule.needs and not self.has(rule.needs)):
                reason = rule.never or NEEDS[rule.needs][0]
                yield Result(command.place, command.text, f"not run: {reason}", 0.0)
            else:
                yield self.run(command, rule, state)

    def run(self, command: Command, rule: Rule, state: Path) -> Result:
        """Run one command, shortened, and keep the folder and the variables that it leaves."""
        short = rule.shortened(command.text).replace("CLONE", str(self.clone))
        if rule.in_solo_learn or "$SOLO" in short:
            self.solo_checkout()
        short = short.replace("$SMALL", str(self.small)).replace("$SOLO", str(self.solo))
        body = f"(cd {shlex.quote(str(self.solo))}\n{short}\n)" if rule.in_solo_learn else short
        script = f"""
source {shlex.quote(str(state))}
{body}
status=$?
{{ export -p; echo cd "$(printf %q "$PWD")"; }} > {shlex.quote(str(state))}
exit $status
"""
        print(f"\n$ {short}", flush=True)
        begin = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", script],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(self.timeout)
            status = "ok" if code == 0 else f"FAILED: exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"FAILED: more than {self.timeout:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        seconds = time.monotonic() - begin
        print(f"[{command.place}: {status}, {seconds:.1f} s]", flush=True)
        return Result(command.place, short.replace(str(self.folder), "").strip(), status, seconds)


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    rows = ["| where | command as run | status | seconds |", "| --- | --- | --- | ---: |"]
    for place, command, status, seconds in results:
        shown = command.replace("|", "\\|")
        rows.append(f"| {place} | `{shown}` | {status} | {seconds:.1f} |")
    return "\n".join(rows)


def main() -> int:
    """Walk through the pages; 1 if a command fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", action="append", help="only this page, such as README.md")
    parser.add_argument("--borrow", action="store_true", help="this Python's packages, no new ones")
    parser.add_argument("--downloads", action="store_true", help="also set up the tox environments")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for each command")
    parser.add_argument("--out", type=Path, help="folder to keep; must not exist")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp(prefix="walk-")) / "walk"
    walk = Walk(folder.resolve(), args.borrow, args.downloads, args.timeout)
    chosen = [page for page in pages() if not args.page or page.name in args.page]
    results = [result for page in chosen for result in walk.page(page)]
    print(f"\n{table(results)}\n")
    counts = [sum(r.status.startswith(s) for r in results) for s in ("ok", "FAILED", "not run")]
    print("{} ok, {} failed, {} not run".format(*counts))
    if not args.out:
        shutil.rmtree(folder.parent)
    return int(counts[1] > 0 or not counts[0])


if __name__ == "__main__":
    sys.exit(main())
