"""What is found in one step of modules that hand their features on in different ways."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hsplugin.monitor.samples import Samples
from hsplugin.monitor.taps import RefusedError, Taps, Views


class Model(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
        self.projection_head = nn.Linear(4, 5)
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        return self.projection_head(self.backbone(x).flatten(1))


class Criterion(nn.Module):
    """Takes anything, as only what passes matters here."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(())


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, 2, 2), torch.randn(rows, 3, 2, 2)


def found(taps: Taps, model: nn.Module, step: Any, batch: Any = None) -> Views:
    taps.install(model)
    taps.listen()
    try:
        step()
        return taps.views(model, None, batch)
    finally:
        taps.remove()


def test_criterion_inputs_by_position_and_by_keyword() -> None:
    model = Model(criterion=Criterion())
    a, b = model(batch()[0]), model(batch()[1])
    for step in (
        lambda: model.criterion(a, b),
        lambda: model.criterion(z_a=a, z_b=b),
        lambda: model.criterion(a, z_b=b, epoch=3),
    ):
        views = found(Taps(), model, step)
        assert torch.equal(views.x, a) and torch.equal(views.y, b)
        assert not views.x.requires_grad and not views.y.requires_grad


def test_the_side_with_a_gradient_comes_first() -> None:
    model = Model(criterion=Criterion())
    bank, query = torch.randn(6, 5), model(batch()[0])
    views = found(Taps(), model, lambda: model.criterion(bank, query))
    assert torch.equal(views.x, query) and torch.equal(views.y, bank)


def test_first_call_of_a_symmetric_step_counts() -> None:
    model = Model(criterion=Criterion())
    p0, z0, p1, z1 = torch.randn(4, 6, 5)
    views = found(Taps(), model, lambda: (model.criterion(p0, z1), model.criterion(p1, z0)))
    assert torch.equal(views.x, p0) and torch.equal(views.y, z1)


Z = torch.randn(6, 5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([Z, Z], [Z]), "a list of 2, a list of 1"),
        ((Z,), r"with float32 \(6, 5\);"),
        ((Z, Z[:3]), r"float32 \(6, 5\), float32 \(3, 5\)"),
        ((Z, torch.zeros(6, dtype=torch.long)), r"int64 \(6,\)"),
        ((Z, torch.zeros(6, 5, dtype=torch.long)), r"int64 \(6, 5\)"),
        ((Z[None], Z[None]), r"float32 \(1, 6, 5\)"),
        ((Z, Z, Z), r"float32 \(6, 5\), float32 \(6, 5\), float32 \(6, 5\)"),
        ((Z, {"z": Z}), "a dict"),
        ((), "but with nothing"),
    ],
)
def test_anything_but_two_views_is_refused(arguments: tuple, reason: str) -> None:
    model = Model(criterion=Criterion())
    with pytest.raises(RefusedError, match=reason):
        found(Taps(), model, lambda: model.criterion(*arguments))


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss()])
def test_reconstruction_targets_are_refused(criterion: nn.Module) -> None:
    model = Model(criterion=criterion)
    with pytest.raises(RefusedError, match="predictions with targets"):
        found(Taps(), model, lambda: model.criterion(Z, Z))


def test_scores_of_prototypes_are_refused() -> None:
    head = nn.ModuleDict({"last_layer": nn.Linear(4, 5, bias=False)})
    model = Model(criterion=Criterion(), head=head)
    with pytest.raises(RefusedError, match=r"5 prototypes of 'head\.last_layer'"):
        found(Taps(), model, lambda: model.criterion(Z, Z))
    wide = nn.ModuleDict({"last_layer": nn.Linear(4, 300, bias=False)})
    model = Model(criterion=Criterion(), head=wide)
    assert found(Taps(), model, lambda: model.criterion(Z, Z)).x.shape == (6, 5)


def test_several_criteria_are_not_guessed_among() -> None:
    model = Model(criterion_global=Criterion(), criterion_local=Criterion())
    names = re.escape("['criterion_global', 'criterion_local']")
    with pytest.raises(RefusedError, match=f"several criteria {names}: choose one with module="):
        found(Taps(), model, lambda: model.criterion_local(Z, Z))
    views = found(Taps(module="criterion_local"), model, lambda: model.criterion_local(Z, -Z))
    assert torch.equal(views.x, Z) and torch.equal(views.y, -Z)


def test_no_criterion_and_an_uncalled_one_are_told_apart() -> None:
    with pytest.raises(RefusedError, match="it has no criterion submodule; name the submodule"):
        found(Taps(), Model(), lambda: None)
    with pytest.raises(RefusedError, match="the criterion was not called"):
        found(Taps(), Model(criterion=Criterion()), lambda: None)
    with pytest.raises(RefusedError, match="module='backbone' was not called"):
        found(Taps(module="backbone"), Model(), lambda: None)


def test_submodule_pairs_the_two_first_calls() -> None:
    model = Model()
    a, b = batch()
    taps = Taps(module="projection_head")
    views = found(taps, model, lambda: (model(a), model(b), model(a[:2])))
    assert torch.equal(views.x, model(a)) and torch.equal(views.y, model(b))
    assert found(taps, model, lambda: model(a)).y is None
    assert found(taps, model, lambda: (model(a), model(a[:2]))).y is None


def test_pooled_maps_are_features_and_token_maps_are_not() -> None:
    model = Model()
    a, _ = batch()
    views = found(Taps(module="backbone"), model, lambda: model(a))
    assert torch.equal(views.x, model.backbone(a).flatten(1))
    with pytest.raises(RefusedError, match=r"output of 'backbone.0' is float32 \(6, 4, 2, 2\)"):
        found(Taps(module="backbone.0"), model, lambda: model(a))


def test_unknown_submodule_names_near_ones() -> None:
    with pytest.raises(RefusedError, match="did you mean projection_head"):
        Taps(module="projector_head").install(Model())
    with pytest.raises(RefusedError, match=r"there are \['backbone', 'projection_head'\]"):
        Taps(module="xyz").install(Model())


class Solo(Model):
    """As solo-learn's methods: forward returns a dictionary, the loss is a function."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        feats = self.backbone(x).flatten(1)
        return {"feats": feats, "z": self.projection_head(feats)}


def test_forward_that_returns_z_is_preferred() -> None:
    model = Solo(criterion=Criterion())
    a, b = batch()
    views = found(Taps(), model, lambda: (model(a), model(b), model.criterion([Z])))
    assert torch.equal(views.x, model(a)["z"]) and torch.equal(views.y, model(b)["z"])


def test_forward_without_z_says_what_it_returned() -> None:
    class NoZ(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"pred": x, "mask": x}

    model = NoZ()
    with pytest.raises(RefusedError, match=r"forward returned \['mask', 'pred'\], no 'z'"):
        found(Taps(), model, lambda: model(batch()[0]))


def test_result_of_a_step_is_not_taken_for_features() -> None:
    class Step(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": x.sum(), "z": x.flatten(1)}

    model = Step()
    with pytest.raises(RefusedError, match="no criterion"):
        found(Taps(), model, lambda: model(batch()[0]))


@pytest.mark.parametrize(
    ("returned", "x", "y", "labels"),
    [
        (Z, Z, None, None),
        ((Z, -Z), Z, -Z, None),
        ({"x": Z, "labels": torch.arange(6)}, Z, None, torch.arange(6)),
    ],
)
def test_extract_returns_features_a_pair_or_a_dictionary(
    returned: Any, x: Tensor, y: Tensor | None, labels: Tensor | None
) -> None:
    views = found(Taps(extract=lambda *_: returned), Model(), lambda: None)
    assert torch.equal(views.x, x)
    assert (views.y is None) == (y is None) and (y is None or torch.equal(views.y, y))
    assert (views.labels is None) == (labels is None)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (Z[0], r"returned float32 \(5,\)"),
        ((Z, Z[:2]), r"float32 \(6, 5\), float32 \(2, 5\)"),
        ({"features": Z}, r"keys \['features'\]"),
        ({"x": Z, "labels": torch.arange(4)}, "one label a row"),
        (None, "a NoneType"),
    ],
)
def test_extract_that_returns_something_else_is_refused(returned: Any, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        found(Taps(extract=lambda *_: returned), Model(), lambda: None)


def test_extract_disturbs_neither_modes_nor_statistics_nor_random_state() -> None:
    import random

    import numpy as np

    model = Model(norm=nn.BatchNorm1d(4), drop=nn.Dropout(0.5))
    model.backbone.eval()

    def extract(module: nn.Module, outputs: Any, passed: Any) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        return module.drop(module.norm(module.backbone(passed).flatten(1)))

    passed, _ = batch()
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    views = found(Taps(extract=extract), model, lambda: None, passed)
    assert not views.x.requires_grad
    assert modes == [module.training for module in model.modules()]
    assert model.norm.num_batches_tracked == 0
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    "layout",
    [
        lambda labels: ([Z, Z], labels, ["a", "b"]),  # Lightly: views, labels, file names
        lambda labels: [torch.zeros(6, dtype=torch.long), [Z, Z], labels],  # solo-learn
        lambda labels: {"image": Z, "label": labels},
    ],
)
def test_labels_are_the_last_integers_of_the_batch(layout: Any) -> None:
    model, labels = Model(criterion=Criterion()), torch.arange(6)
    views = found(Taps(), model, lambda: model.criterion(Z, Z), layout(labels))
    assert torch.equal(views.labels, labels)


def test_nothing_is_kept_when_not_listening() -> None:
    model, taps = Model(criterion=Criterion()), Taps()
    taps.install(model)
    model.criterion(Z, Z)
    assert not taps._criterion_calls
    taps.listen()
    model.criterion(Z, Z)
    assert taps._criterion_calls
    taps.stop()
    assert not taps._criterion_calls


@pytest.mark.parametrize("length", [1, 2, 7, 40, 173])
@pytest.mark.parametrize("every", [1, 3])
def test_samples_stay_bounded_and_evenly_spaced(length: int, every: int) -> None:
    samples = Samples(every, max_samples=40)
    for index in range(length):
        if samples.wants(index):
            samples.add(index, Views(torch.full((8, 2), float(index))))
        assert len(samples) <= 40
    kept = [int(views.x[0, 0]) for views in samples]
    assert kept[0] == 0
    spacing = {b - a for a, b in itertools.pairwise(kept)}
    assert len(spacing) <= 1
    # At least half of what there is room for is used, if there was as much.
    assert len(kept) >= min(3, -(-length // every))


def test_samples_are_copies_of_at_most_max_samples_rows() -> None:
    samples, features = Samples(1, max_samples=5), torch.ones(8, 2)
    samples.add(0, Views(features, features, torch.arange(8)))
    features.zero_()
    (views,) = samples
    assert views.x.shape == (5, 2) and bool((views.x == 1).all())
    assert torch.equal(views.labels, torch.arange(5))
