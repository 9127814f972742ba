"""What a monitor tapped, and the values that these tensors have by definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hsplugin.monitor.views import Views
from tests import reference


def tapped(monitor: Any) -> list[Views]:
    """Copies of all that a monitor of one representation will tap, batch by batch."""
    taps, seen = monitor._watched[""].taps, []
    find = taps.views

    def views(*step: Any) -> Views:
        found = find(*step)
        seen.append(found.map(Tensor.clone))
        return found

    taps.views = views
    return seen


def assert_values_are_by_definition(row: dict[str, float], seen: list[Views]) -> None:
    """Alignment and uniformity of an epoch, in float64 from the definition."""
    x = torch.nn.functional.normalize(torch.cat([views.x for views in seen]).double())
    expected = {"uniformity": float(reference.log_mean_potential(x, 2.0))}
    assert ("alignment" in row) == all(views.y is not None for views in seen)
    if "alignment" in row:
        y = torch.nn.functional.normalize(torch.cat([views.y for views in seen]).double())
        expected["alignment"] = float(reference.align(x, y, 2.0))
    assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
