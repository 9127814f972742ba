"""Which encoders a sweep trains: scikit-learn's parameter grids over settings and options."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.flags import read_yaml
from hsplugin.lab.methods import METHODS, options_of
from hsplugin.lab.settings import RunSettings

Grid = Mapping[str, Sequence[Any]]

# The weight ratio as one number: w_a / (w_a + w_u), with w_a + w_u = 2.
ALIGN_SHARE = "align_share"

# The paper's sweeps on a smaller scale: weight ratio, alpha with t, temperature, and for both
# losses dimension, batch size, learning rate and epochs.
DEFAULT_GRID: list[Grid] = [
    {
        "method": ["align_uniform"],
        ALIGN_SHARE: [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0],
    },
    {
        "method": ["align_uniform"],
        ALIGN_SHARE: [0.25, 0.5, 0.75],
        "alpha": [1.0, 2.0],
        "t": [1.0, 2.0, 4.0, 8.0],
    },
    {"method": ["simclr"], "temperature": [0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0]},
    {"method": ["align_uniform"], "dim": [4, 16, 32, 128, 256]},
    {"method": ["simclr"], "temperature": [0.2], "dim": [4, 16, 32, 128, 256]},
    {"method": ["align_uniform"], "batch_size": [64, 128, 512, 1024]},
    {"method": ["simclr"], "temperature": [0.2], "batch_size": [64, 512]},
    {"method": ["align_uniform"], "lr": [5e-4, 8e-3]},
    {"method": ["simclr"], "temperature": [0.2], "lr": [5e-4, 8e-3]},
    {"method": ["align_uniform"], "epochs": [1, 2]},
    {"method": ["simclr"], "temperature": [0.2], "epochs": [1, 2]},
]


def read_grid(path: Path) -> list[Grid]:
    """Read grids from YAML: one mapping, or a list of them, from names to values.

    Raises:
        CommandError: The file cannot be read or holds something else.
    """
    content = read_yaml(path)
    grids = content if isinstance(content, list) else [content]
    if not grids or not all(isinstance(grid, dict) and grid for grid in grids):
        raise CommandError(
            f"{path} must hold a mapping such as {{method: [simclr], temperature: [0.1, 0.5]}}, "
            "or a list of them"
        )
    if empty := [name for grid in grids for name, values in grid.items() if values == []]:
        raise CommandError(f"{path}: {empty[0]} has no values")
    return [
        {
            str(name): values if isinstance(values, list) else [values]
            for name, values in grid.items()
        }
        for grid in grids
    ]


def fitting(grids: Sequence[Grid], images: int) -> list[Grid]:
    """The grids without batches of more than so many images; says which are left out."""
    sizes = sorted({size for grid in grids for size in grid.get("batch_size", ())})
    if too_large := [size for size in sizes if size > images]:
        print(
            f"hsplugin sweep: batches of {', '.join(map(str, too_large))} are left out, as there "
            f"are {images} training images",
            file=sys.stderr,
        )
    kept = [
        {n: [v for v in values if n != "batch_size" or v <= images] for n, values in grid.items()}
        for grid in grids
    ]
    return [grid for grid in kept if all(grid.values())]


def encoders(
    grids: Sequence[Grid], base: Mapping[str, Any], sample: int | None = None, seed: int = 0
) -> list[RunSettings]:
    """The settings of every encoder of the grids, each once, in their order.

    Args:
        grids: Names to values; every combination within a grid is one encoder. A name is a field
            of RunSettings, an option of the method, or ``align_share``.
        base: Fields of RunSettings for all encoders, which a grid may override.
        sample: How many to draw at random; None takes all.
        seed: Seed of that draw.

    Raises:
        CommandError: Unknown method, name or impossible value.
    """
    from sklearn.model_selection import ParameterGrid

    points: Sequence[Mapping[str, Any]] = list(ParameterGrid(list(grids)))
    settings = {s.name: s for s in (_settings(point, base) for point in points)}
    chosen = list(settings.values())
    if sample is not None and sample < len(chosen):
        kept = set(random.Random(seed).sample(range(len(chosen)), sample))
        chosen = [s for i, s in enumerate(chosen) if i in kept]
    return chosen


def _settings(point: Mapping[str, Any], base: Mapping[str, Any]) -> RunSettings:
    method = point.get("method")
    if method is None:
        raise CommandError(f"a grid must name its method, such as method: [{next(iter(METHODS))}]")
    if not isinstance(method, str) or method not in METHODS:
        raise CommandError(unknown("method", str(method), METHODS))
    defaults = METHODS[method].defaults
    # A setting that the method has its own default for, such as a larger projection, is an option
    # of the method; the other settings are shared by all methods.
    shared = {f.name for f in fields(RunSettings)} - {"options", "framework"} - set(defaults)
    known = {*shared, *defaults, *([ALIGN_SHARE] if "align_weight" in defaults else [])}
    for name in point:
        if name not in known:
            raise CommandError(unknown(f"name in a grid of {method}", name, known))
    options = {name: value for name, value in point.items() if name not in shared}
    if ALIGN_SHARE in options:
        share = options.pop(ALIGN_SHARE)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise CommandError(f"{ALIGN_SHARE}: {share!r} must be a number from 0 to 1")
        options |= {"align_weight": 2.0 * share, "uniform_weight": 2.0 - 2.0 * share}
    given = {name: value for name, value in point.items() if name in shared}
    options_of(method, options, {**{f.name: f.default for f in fields(RunSettings)}, **base})
    # Defaults are left out, so that one encoder has one name however it was asked for.
    options = {name: value for name, value in options.items() if value != defaults[name]}
    try:
        return RunSettings(**{**base, **given}, options=options)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None


def align_share(options: Mapping[str, Any]) -> float | None:
    """The share of alignment in the weights of a run; None if the method has no such weights."""
    if "align_weight" not in options:
        return None
    total = float(options["align_weight"]) + float(options["uniform_weight"])
    return float(options["align_weight"]) / total if total else None
