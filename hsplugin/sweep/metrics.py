"""The metrics that a sweep relates to accuracy: those of the table that have a direction.

Each is measured of the projections and, with a prefix to its name, of the backbone's features.
"""

from __future__ import annotations

import math

from torch import Tensor

import hsplugin
from hsplugin.lab.run import Run
from hsplugin.metrics import METRICS as TABLE
from hsplugin.metrics.inputs import select_inputs

# A metric that is itself what the others are related to.
ACCURACY = "knn"
BACKBONE = "backbone_"
_DIRECTED = {
    "align_plus_uniform": ("alignment + uniformity", -1),
    **{
        name: (kind.title, 1 if kind.higher_is_better else -1)
        for name, kind in TABLE.items()
        if kind.higher_is_better is not None and name != ACCURACY
    },
}
# Column -> (heading, expected sign: less (-1) or more (+1) of it should mean higher accuracy).
METRICS = {
    **_DIRECTED,
    **{
        f"{BACKBONE}{name}": (f"{title}, backbone", sign)
        for name, (title, sign) in _DIRECTED.items()
    },
}


def geometry(run: Run) -> dict[str, float]:
    """Metrics of a run's positive pairs; NaN where one is not defined or an old run lacks it.

    Only tolerance and the rank within classes use labels.
    """
    values = dict.fromkeys(METRICS, math.nan) | _measured("", *run.read_pairs())
    of_backbone = run.read_backbone_pairs()
    return values if of_backbone is None else values | _measured(BACKBONE, *of_backbone)


def _measured(prefix: str, a: Tensor, b: Tensor, labels: Tensor) -> dict[str, float]:
    settings = {"normalize": False, "num_classes": int(labels.max()) + 1}
    # As every run records it, of both views.
    values = {"uniformity": float(hsplugin.uniform_loss(a) + hsplugin.uniform_loss(b)) / 2}
    for name in (_DIRECTED.keys() & TABLE.keys()) - values.keys():
        kind = TABLE[name]
        try:
            inputs = select_inputs(kind.takes, (), a, b, labels)
            values[name] = float(kind.build(**settings).of(*inputs))
        except (ValueError, RuntimeError):
            values[name] = math.nan
    values["align_plus_uniform"] = values["alignment"] + values["uniformity"]
    return {f"{prefix}{name}": value for name, value in values.items()}
