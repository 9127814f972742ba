"""The length of a row, and the scale of all rows, count only where a metric depends on them."""

import math

import numpy as np
import pytest
import torch

from hsplugin import metrics
from hsplugin.metrics.directions import directions
from tests.metrics import definitions

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 6)) + 0.4
Y = X + 0.3 * RANDOM.normal(size=(60, 6))
LABELS = np.arange(60) % 3
UNIT_X, UNIT_Y = definitions.unit(X), definitions.unit(Y)

ON_SPHERE = {
    "alignment": (metrics.Alignment, (X, Y), definitions.alignment(UNIT_X, UNIT_Y)),
    "uniformity": (metrics.Uniformity, (X,), definitions.uniformity(UNIT_X)),
    "wasserstein_uniformity": (
        metrics.WassersteinUniformity,
        (X,),
        definitions.wasserstein_uniformity(UNIT_X),
    ),
    "tolerance": (
        lambda: metrics.Tolerance(3),
        (X, LABELS),
        definitions.tolerance(UNIT_X, LABELS),
    ),
}
OF_NO_SCALE = {
    "rankme": (metrics.RankMe, definitions.rankme(X)),
    "effective_rank": (metrics.EffectiveRank, definitions.effective_rank(X)),
    "alpha_req": (lambda: metrics.AlphaReQ((1, 6)), definitions.alpha_req(X, 1, 6)),
    "nesum": (metrics.NESum, definitions.nesum(X)),
}
# By dtype: the powers of ten of the lengths of rows, and the accuracy.
EXTREMES = {
    torch.float16: (-3, 4, 5e-3),
    torch.bfloat16: (-36, 37, 3e-2),
    torch.float32: (-36, 37, 1e-5),
    torch.float64: (-300, 307, 1e-5),
}


def tensors(arrays, dtype, scale=None):
    return [
        torch.tensor(a if a.dtype == int or scale is None else a * scale).to(
            torch.int64 if a.dtype == int else dtype
        )
        for a in arrays
    ]


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", ON_SPHERE)
def test_a_direction_counts_however_short_or_long_its_row_is(name, dtype):
    make, arrays, expected = ON_SPHERE[name]
    least, most, accuracy = EXTREMES[dtype]
    lengths = 10.0 ** RANDOM.uniform(least, most, size=(60, 1)) / 4
    metric = make()
    metric.update(*tensors(arrays, dtype, lengths))
    assert metric.compute().item() == pytest.approx(expected, rel=accuracy)


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", OF_NO_SCALE)
def test_a_metric_that_does_not_depend_on_scale_has_its_value_at_every_scale(name, dtype):
    make, expected = OF_NO_SCALE[name]
    least, most, accuracy = EXTREMES[dtype]
    for scale in (10.0**least, 10.0**most / 4):
        (x,) = tensors([X], dtype, scale)
        metric = make()
        metric.update(x[:25])
        metric.update(x[25:])
        assert metric.compute().item() == pytest.approx(expected, rel=accuracy)
        assert metric.of(x).item() == pytest.approx(expected, rel=accuracy)


def test_batches_of_unlike_scales_are_merged_at_the_largest():
    for scales in ([1.0, 1e-200, 1e-170], [1e-250, 1e250, 1e249], [0.0, 1e-200, 3e-200]):
        metric = metrics.NESum()
        parts = [scale * part for scale, part in zip(scales, np.split(X, 3), strict=True)]
        for part in parts:
            metric.update(torch.tensor(part))
        whole = np.concatenate(parts)
        expected = definitions.nesum(whole / np.abs(whole).max())
        assert metric.compute().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-250, 1e-150, 1e20, 1e60, 1e140])
def test_lidar_counts_dimensions_at_every_scale(scale):
    """Delta is nothing beside long rows, and what lies within instances is nothing beside delta."""
    views = np.stack([X, Y], axis=1)
    metric = metrics.LiDAR(delta=1e-4, epsilon=1e-7)
    metric.update(torch.tensor(scale * views[:25]))
    metric.update(torch.tensor(scale * views[25:]))
    expected = definitions.lidar(views, *((1e12, 1e-7) if scale < 1 else (1e-14, 1e-7)))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
    same = metrics.LiDAR()
    same.update(torch.tensor(scale * X[:1]).expand(60, 6)[:, None].repeat(1, 2, 1))
    assert same.compute() == 0


def test_zero_rows_stay_zero_and_others_are_of_unit_length():
    x = torch.tensor(X)
    x[3] = 0
    x[4] *= 1e-310
    x[5] *= 1e300
    lengths = directions(x).norm(dim=1)
    assert lengths[3] == 0
    assert (lengths[torch.arange(60) != 3] - 1).abs().max() < 1e-12
    for bad in (math.nan, math.inf):
        x[7, 2] = bad
        assert directions(x)[7].isnan().all()
        assert not directions(x)[6].isnan().any()


@pytest.mark.parametrize(
    ("make", "arrays"),
    [
        (lambda: metrics.Alignment(normalize=False), (X, Y)),
        (lambda: metrics.Uniformity(normalize=False), (X,)),
        (lambda: metrics.WassersteinUniformity(normalize=False), (X,)),
        (metrics.LiDAR, (np.stack([X, Y], axis=1),)),
    ],
)
def test_a_metric_that_depends_on_scale_refuses_to_overflow(make, arrays):
    metric, given = make(), tensors(arrays, torch.float64, 1e200)
    metric.update(*given)
    with pytest.raises(OverflowError, match=r"of features this large is beyond torch.float64"):
        metric.compute()
    with pytest.raises(OverflowError, match=r"is beyond"):
        metric.of(*given)
