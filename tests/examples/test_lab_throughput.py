"""The throughput of the lab is a table whose numbers agree with each other."""

from __future__ import annotations

import pytest

from tests.examples import scripts

pytest.importorskip("lightly")
pytest.importorskip("kornia")


@pytest.mark.slow
def test_speed_and_share_follow_from_the_parts_of_the_step() -> None:
    printed = scripts.run("lab_throughput", "--rounds", 3, "--batch-size", 64, "--device", "cpu")
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert len({(row["precision"], row["memory"], row["step"]) for row in rows}) == 4
    for row in rows:
        parts = {name: float(row[name]) for name in header if name.endswith(" ms")}
        assert set(parts) == {
            f"{p} ms" for p in ("load", "augment", "forward", "backward", "optimizer")
        }
        spent = sum(parts.values())
        share = 100 * (1 - (parts["load ms"] + parts["augment ms"]) / spent)
        assert float(row["share"].rstrip("%")) == pytest.approx(share, abs=1.5)
        assert 0 < float(row["images/s"]) < 1e6
