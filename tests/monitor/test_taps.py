"""What is found in one step of modules that hand their features on in different ways."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hsplugin.monitor.samples import Samples
from hsplugin.monitor.taps import Taps
from hsplugin.monitor.views import RefusedError, Views


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


def test_of_several_criteria_the_first_that_gets_two_views_counts() -> None:
    model = Model(criterion_lists=Criterion(), criterion_local=Criterion(), loss_c=Criterion())

    def step() -> None:
        model.loss_c(-Z, Z)
        model.criterion_lists([Z], [Z])
        model.criterion_local(Z, -Z)

    taps = Taps()
    views = found(taps, model, step)
    assert torch.equal(views.x, Z) and torch.equal(views.y, -Z)
    assert taps.measured == "the inputs of 'criterion_local'"
    assert torch.equal(found(Taps(module="loss_c"), model, step).x, -Z)


def test_no_criterion_and_an_uncalled_one_are_told_apart() -> None:
    with pytest.raises(RefusedError, match=r"^it has no criterion submodule; name the submodule"):
        found(Taps(), Model(), lambda: None)
    with pytest.raises(RefusedError, match="the criterion 'criterion' was not called"):
        found(Taps(), Model(criterion=Criterion()), lambda: None)
    with pytest.raises(RefusedError, match="module='backbone' was not called"):
        found(Taps(module="backbone"), Model(), lambda: None)


def test_a_criterion_is_found_at_any_depth_but_not_that_of_a_probe() -> None:
    method = Model(simclr_loss=Criterion())
    probe = nn.ModuleDict({"criterion": Criterion()})
    model = Model(method=method, online_probe=probe)

    def step() -> None:
        probe["criterion"](Z + 1, Z)
        method.simclr_loss(Z, -Z)

    taps = Taps()
    assert torch.equal(found(taps, model, step).y, -Z)
    assert taps.measured == "the inputs of 'method.simclr_loss'"


@dataclasses.dataclass
class Output:
    loss: Tensor
    embedding: Tensor


@pytest.mark.parametrize("kind", [dict, Output])
@pytest.mark.parametrize("whole", [True, False], ids=["of the module", "of a part"])
def test_the_embedding_of_an_output_is_taken_and_its_views_apart(kind: Any, whole: bool) -> None:
    class Method(Model):
        def forward(self, x: Tensor) -> Any:
            z = super().forward(x)
            return kind(loss=z.sum(), embedding=torch.cat([z, -z]).detach())

    method, (a, b) = Method(), batch()
    model = method if whole else nn.ModuleDict({"method": method})
    taps = Taps()
    views = found(taps, model, lambda: method(a), {"view": [a, b], "label": torch.arange(6)})
    z = method.projection_head(method.backbone(a).flatten(1))
    assert torch.equal(views.x, z) and torch.equal(views.y, -z)
    assert torch.equal(views.labels, torch.arange(6))
    assert taps.measured == f"the embedding that {'forward' if whole else repr('method')} returns"


def test_a_projection_head_stands_in_for_a_criterion_of_lists() -> None:
    model = Model(criterion=Criterion(), teacher_head=nn.Linear(4, 5))
    a, b = batch()

    def step() -> None:
        with torch.no_grad():
            model.teacher_head(model.backbone(b).flatten(1))
        z = model(a), model(b)
        model.criterion(list(z), list(z))

    taps = Taps()
    views = found(taps, model, step)
    assert taps.measured == "the output of 'projection_head'"
    assert torch.equal(views.x, model(a)) and torch.equal(views.y, model(b))


def test_what_the_prototypes_of_a_head_score_is_measured() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Linear(4, 3)
            self.last_layer = nn.Linear(3, 7, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last_layer(self.layers(x))

    head, taps = Head(), Taps()
    a, b = torch.randn(2, 6, 4)
    model = nn.ModuleDict({"student_head": head})
    views = found(taps, model, lambda: (head(a), head(b)))
    assert taps.measured == "what the prototypes 'student_head.last_layer' score"
    assert torch.equal(views.x, head.layers(a))
    assert torch.equal(views.y, head.layers(b))


@pytest.mark.parametrize("name", ["encoder", "net"])
def test_a_module_without_a_head_has_its_backbone_measured(name: str) -> None:
    model = nn.ModuleDict({"decoder": nn.Linear(4, 2), name: Model().backbone})
    a, b = batch()
    taps = Taps()
    views = found(
        taps, model, lambda: [model["decoder"](model[name](x).flatten(1)) for x in (a, b)]
    )
    assert taps.measured == f"the output of {name!r}"
    assert torch.equal(views.x, model[name](a).flatten(1))


def test_what_a_classifier_is_given_is_measured_where_nothing_else_is() -> None:
    model = nn.ModuleDict({"encoder": nn.Conv2d(3, 4, 1), "classifier": nn.Linear(4, 2)})
    a, _ = batch()
    features = model["encoder"](a).mean((2, 3))
    taps = Taps()
    views = found(taps, model, lambda: model["classifier"](model["encoder"](a).mean((2, 3))))
    assert taps.measured == "what the classifier 'classifier' is given"
    assert torch.equal(views.x, features)


def test_several_views_in_one_call_are_taken_apart_and_tokens_are_not() -> None:
    model, (a, b) = Model(), batch()
    taps = Taps(module="projection_head")
    views = found(taps, model, lambda: model(torch.cat([a, b, a])), ([a, b, a], torch.arange(6)))
    assert torch.allclose(views.x, model(a), atol=1e-6)
    assert torch.allclose(views.y, model(b), atol=1e-6)
    assert torch.equal(views.labels, torch.arange(6))
    # More sets of rows than there are views are tokens, region by region.
    views = found(taps, model, lambda: model(torch.cat([a, b, a])), (a, torch.arange(6)))
    assert len(views.x) == 18 and views.y is None and views.labels is None


@pytest.mark.parametrize(
    ("pool", "change"), [("mean", lambda t: t.mean(1)), ("cls", lambda t: t[:, 0])]
)
def test_tokens_are_pooled_if_asked(pool: Any, change: Any) -> None:
    tokens = torch.randn(6, 9, 4)
    model = nn.ModuleDict({"backbone": nn.Linear(4, 5)})
    views = found(Taps(pool=pool), model, lambda: model["backbone"](tokens))
    assert torch.equal(views.x, change(model["backbone"](tokens)))
    with pytest.raises(RefusedError, match=r"a tensor of 3 dimensions.*pool='mean'"):
        found(Taps(), model, lambda: model["backbone"](tokens))
    with pytest.raises(ValueError, match="pool must be 'mean', 'cls' or None, got 'max'"):
        Taps(pool="max")


def test_what_was_measured_first_is_kept_to() -> None:
    model, (a, b) = Model(criterion=Criterion()), batch()
    taps = Taps()
    taps.install(model)
    taps.listen()
    model.criterion(model(a), model(b))
    taps.views(model, None, None)
    taps.listen()
    model(a)
    with pytest.raises(RefusedError, match="'criterion' was not called"):
        taps.views(model, None, None)
    taps.remove()


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


LABELS, INDICES = torch.arange(6) % 2, torch.arange(6)


@pytest.mark.parametrize(
    ("layout", "where"),
    [
        (([Z, Z], LABELS, ["a", "b"]), None),  # Lightly: views, labels, file names
        ([INDICES, [Z, Z], LABELS], None),  # solo-learn
        ({"image": Z, "label": LABELS}, None),
        ({"image": Z, "label": LABELS, "sample_idx": INDICES}, None),
        ({"image": Z, "color": LABELS, "idx": INDICES}, None),
        ({"image": Z, "color": LABELS, "shape": INDICES}, "color"),
        ((Z, LABELS, INDICES), 1),
        ((Z, INDICES, LABELS), -1),
    ],
)
def test_labels_of_the_batch_are_found(layout: Any, where: str | int | None) -> None:
    model = Model(criterion=Criterion())
    views = found(Taps(labels=where), model, lambda: model.criterion(Z, Z), layout)
    assert torch.equal(views.labels, LABELS)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("labels", r"labels='labels' is not in the batch, which has \['image', 'label'\]"),
        (1, "labels=1 is not in the batch"),
        ("image", r"labels='image' is float32 \(6, 5\), not one integer for each of 6 rows"),
    ],
)
def test_labels_that_are_not_there_are_refused(where: str | int, message: str) -> None:
    model = Model(criterion=Criterion())
    with pytest.raises(RefusedError, match=message):
        layout = {"image": Z, "label": LABELS}
        found(Taps(labels=where), model, lambda: model.criterion(Z, Z), layout)
    with pytest.raises(RefusedError, match=r"is not in the batch, which has float32 \(6, 5\)"):
        found(Taps(labels=where), model, lambda: model.criterion(Z, Z), Z)
    with pytest.raises(TypeError, match="labels must be the key or the position"):
        Taps(labels=1.5)


def test_nothing_is_kept_when_not_listening() -> None:
    model, taps = Model(criterion=Criterion()), Taps()
    taps.install(model)
    model.criterion(Z, Z)
    assert not len(taps._record)
    taps.listen()
    model.criterion(Z, Z)
    assert len(taps._record)
    taps.stop()
    assert not len(taps._record)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_module_records_nothing_and_needs_no_hsplugin(copied: Any) -> None:
    model, (a, _), taps = Model(), batch(), Taps()
    taps.install(model)
    taps.listen()
    twin = copied(model)
    assert torch.equal(twin(a), twin.projection_head(twin.backbone(a).flatten(1)))
    assert not len(taps._record)
    hooks = [hook for m in twin.modules() for hook in m._forward_hooks.values()]
    assert hooks and b"hsplugin.monitor" not in pickle.dumps(hooks)
    model(a)
    assert len(taps._record)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_while_a_module_trains_starts_without_it(copied: Any) -> None:
    model, (a, _), taps = Model(), batch(), Taps(labels=1, pool="cls")
    taps.install(model)
    taps.listen()
    model(a)
    taps.views(model, None, (a, torch.arange(len(a))))
    twin = copied(taps)
    assert (twin.labels, twin.pool, twin.measured) == (1, "cls", taps.measured)
    assert not twin.ready and not len(twin._record)
    assert len(taps._record)


def test_a_part_compiled_by_jit_takes_no_hook_and_is_left_out() -> None:
    model, (a, b), taps = Model(criterion=Criterion()), batch(), Taps()
    model.backbone = torch.jit.script(model.backbone)
    taps.install(model)
    taps.listen()
    model.criterion(model(a), model(b))
    assert taps.views(model, None, a).x.shape == (len(a), 5)
    with pytest.raises(RefusedError, match=r"compiled by torch.jit.*extract="):
        Taps(module="backbone").install(model)


def test_nested_tensors_are_no_features_and_stop_nothing() -> None:
    class Ragged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nested.nested_tensor([x[:1], x[1:]])

    model, taps = nn.Module(), Taps()
    model.backbone = Ragged()
    taps.install(model)
    taps.listen()
    model.backbone(Z)
    with pytest.raises(RefusedError, match=r"'backbone' is a tensor of 3 dimensions"):
        taps.views(model, None, Z)


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


def test_rows_of_views_one_after_the_other_are_said_to_be_taken_for_that() -> None:
    model, (a, b), taps = Model(), batch(), Taps(module="backbone")
    views = found(taps, model, lambda: model.backbone(torch.cat([a, b])), [a, torch.arange(len(a))])
    first, second = (model.backbone(view).flatten(1) for view in (a, b))
    assert torch.allclose(views.x, first) and torch.allclose(views.y, second)
    assert taps.split == ", taken for 2 views one after the other"
    found(taps := Taps(module="backbone"), model, lambda: model.backbone(a), a)
    assert taps.split == ""


def test_once_the_source_is_chosen_the_other_parts_can_be_scripted() -> None:
    model, (a, b), taps = Model(criterion=Criterion()), batch(), Taps()
    taps.install(model)
    for _ in range(2):
        taps.listen()
        model.criterion(model(a), model(b))
        taps.views(model, None, [a, b])
    scripted = torch.jit.script(model.backbone)
    assert torch.equal(scripted(a), model.backbone(a))
    taps.remove()


@pytest.mark.parametrize("container", [nn.ModuleDict, nn.Module])
def test_parts_within_what_cannot_be_called_are_found(container: type[nn.Module]) -> None:
    model, (a, b), taps = nn.Module(), batch(), Taps()
    model.parts = container()
    model.parts.add_module("deeper", nn.ModuleList([nn.Linear(12, 7), nn.Linear(7, 2)]))
    first, _ = model.parts.deeper
    views = found(taps, model, lambda: [first(view.flatten(1)) for view in (a, b)])
    assert taps.measured == "the output of 'parts.deeper.0'"
    assert torch.equal(views.x, first(a.flatten(1))) and torch.equal(views.y, first(b.flatten(1)))


def test_an_output_with_keys_of_its_own_is_told_by_them() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"z_left": x, "mask": x}

    model = nn.ModuleDict({"method": Own()})
    with pytest.raises(RefusedError, match=r"a dict with the keys \['mask', 'z_left'\]"):
        found(Taps(), model, lambda: model["method"](Z))
