"""A finished comparison of which a file was damaged: one line, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from typing import Any

import pytest

from hsplugin import cli
from hsplugin.lab import pool
from tests.compare.running import FLAGS


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes cut off, changed or replaced; or JSON with a value changed, or a key removed."""
    kind = chance.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return content[: chance.randrange(len(content))]
    if kind == 2:
        return chance.randbytes(chance.randrange(1, 200))
    if kind == 3 or not content.startswith(b"{"):
        place = chance.randrange(len(content))
        return content[:place] + chance.randbytes(1) + content[place + 1 :]
    parsed = json.loads(content)
    where, depth = parsed, chance.randrange(3)
    while depth and (inner := [v for v in children(where) if isinstance(v, dict | list) and v]):
        where, depth = chance.choice(inner), depth - 1
    key = chance.choice(list(where) if isinstance(where, dict) else range(len(where)))
    others = [None, True, -1, 1e400, float("nan"), "", "\ud800", "$\\x$", [], [1], {}, {"a": []}]
    if kind == 4:
        where[key] = chance.choice(others)
    else:
        del where[key]
    return json.dumps(parsed if chance.random() < 0.9 else chance.choice(others)).encode()


def children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


@pytest.mark.slow
def test_whatever_happens_to_a_file_of_a_finished_comparison_no_traceback_follows(
    compared, tmp_path, monkeypatch, capsys
):
    # A run that counts as missing would be trained; here only what is read matters.
    monkeypatch.setattr(pool, "events", lambda *args: iter(()))
    argv = ["compare", *FLAGS, "--methods", "simclr", "moco", "--out", str(tmp_path / "out")]
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    (out / "tuning.csv").write_text(
        "method,options,validation_knn,validation_linear,mean,chosen\n"
        'simclr,"{""temperature"": 0.2}",80.0,82.0,81.0,True\n'
    )
    assert cli.main(argv) == 0
    before = {path: path.read_bytes() for path in out.glob("runs/*/*")}
    names = ["result.json", "settings.json", "pairs.pt", "answers.pt", "job.json", "tuning.csv"]
    chance, ended = random.Random(0), {0: 0, 2: 0}
    for _ in range(60):
        name = chance.choice(names)
        path = (
            out / name
            if name == "tuning.csv"
            else chance.choice(sorted(out.glob(f"runs/*/{name}")))
        )
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, chance))
        capsys.readouterr()
        status = cli.main(argv)
        error = capsys.readouterr().err
        ended[status] += 1
        if status == 2:
            last = error.splitlines()[-1]
            assert last.startswith("hsplugin compare: ") and "Traceback" not in error
            assert str(path.parent) in last or "other settings" in last
        path.write_bytes(whole)
    # How many are noticed depends on the files' content, which differs by machine.
    assert all(ended.values()), ended
    assert {path: path.read_bytes() for path in before} == before
