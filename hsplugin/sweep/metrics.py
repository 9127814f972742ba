"""The metrics that a sweep relates to accuracy: those of the table that have a direction."""

from __future__ import annotations

import math

from hsplugin.lab.run import Run
from hsplugin.metrics import METRICS as TABLE
from hsplugin.metrics.inputs import select_inputs

# A metric that is itself what the others are related to.
ACCURACY = "knn"
# Column -> (heading, expected sign: less (-1) or more (+1) of it should mean higher accuracy).
METRICS = {
    "align_plus_uniform": ("alignment + uniformity", -1),
    **{
        name: (kind.title, 1 if kind.higher_is_better else -1)
        for name, kind in TABLE.items()
        if kind.higher_is_better is not None and name != ACCURACY
    },
}
# Every run records these itself, from both views.
RECORDED = ("alignment", "uniformity")


def geometry(run: Run) -> dict[str, float]:
    """Metrics of the projections of a run's positive pairs; NaN where one is not defined.

    Only tolerance and the rank within classes use labels.
    """
    a, b, labels = run.read_pairs()
    settings = {"normalize": False, "num_classes": int(labels.max()) + 1}
    values = {}
    for name, kind in TABLE.items():
        if name in METRICS and name not in RECORDED:
            metric = kind.build(**settings)
            try:
                values[name] = float(metric.of(*select_inputs(kind.takes, (), a, b, labels)))
            except (ValueError, RuntimeError):
                values[name] = math.nan
    return values
