"""The metrics that a sweep relates to accuracy."""

from __future__ import annotations

import math

import torch

from hsplugin.lab.run import Run

# Column -> (heading, expected sign: less (-1) or more (+1) of it should mean higher accuracy).
METRICS = {
    "align_plus_uniform": ("alignment + uniformity", -1),
    "alignment": ("alignment", -1),
    "uniformity": ("uniformity", -1),
    "wasserstein_uniformity": ("Wasserstein uniformity", -1),
    "rankme": ("RankMe", +1),
    "effective_rank": ("effective rank", +1),
    "nesum": ("NESum", +1),
    "lidar": ("LiDAR", +1),
    "tolerance": ("tolerance", +1),
}


def geometry(run: Run) -> dict[str, float]:
    """Metrics of the projections of a run's positive pairs; NaN where one is not defined.

    Only tolerance uses labels.
    """
    from hsplugin.metrics import functional

    pairs = torch.load(run.pairs, weights_only=True)
    a, b, labels = pairs["a"].float(), pairs["b"].float(), pairs["labels"]
    measures = {
        "wasserstein_uniformity": lambda: functional.wasserstein_uniformity(a),
        "rankme": lambda: functional.rankme(a),
        "effective_rank": lambda: functional.effective_rank(a),
        "nesum": lambda: functional.nesum(a),
        "lidar": lambda: functional.lidar(torch.stack([a, b], dim=1)),
        "tolerance": lambda: functional.tolerance(a, labels),
    }
    values = {}
    for name, measure in measures.items():
        try:
            values[name] = float(measure())
        except (ValueError, RuntimeError):
            values[name] = math.nan
    return values
