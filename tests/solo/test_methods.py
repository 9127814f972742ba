from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.solo.running import config

pytestmark = pytest.mark.solo

# What the stock methods need beside the widths of their projectors.
KWARGS: dict[str, dict[str, Any]] = {
    "all4one": {"pred_hidden_dim": 32, "temperature": 0.2, "queue_size": 16},
    "barlow_twins": {"lamb": 0.005, "scale_loss": 0.1},
    "byol": {"pred_hidden_dim": 32},
    "deepclusterv2": {"num_prototypes": [4], "temperature": 0.1, "kmeans_iters": 2},
    "dino": {"num_prototypes": 24},
    "mocov2plus": {"temperature": 0.2, "queue_size": 16},
    "mocov3": {"pred_hidden_dim": 32, "temperature": 0.2},
    "nnbyol": {"pred_hidden_dim": 32, "queue_size": 16},
    "nnclr": {"pred_hidden_dim": 32, "temperature": 0.2, "queue_size": 16},
    "nnsiam": {"pred_hidden_dim": 32, "queue_size": 16},
    "ressl": {"temperature_q": 0.1, "temperature_k": 0.04, "queue_size": 16},
    "simclr": {"temperature": 0.2},
    "simsiam": {"pred_hidden_dim": 32},
    "supcon": {"temperature": 0.2},
    "swav": {"num_prototypes": 24, "temperature": 0.1},
    "vibcreg": {},
    "vicreg": {},
    "wmse": {"whitening_size": 8, "proj_output_dim": 4},
}
MULTICROP = ("simclr", "byol", "supcon", "swav")


def start(model: Any, n: int) -> None:
    """What a Trainer brings about before the first step."""
    data = torch.utils.data.TensorDataset(torch.zeros(n))
    model._trainer = SimpleNamespace(
        world_size=1,
        global_rank=0,
        current_epoch=0,
        global_step=0,
        fit_loop=None,
        train_dataloader=torch.utils.data.DataLoader(data, batch_size=n),
    )
    model.on_train_start()
    model.on_train_epoch_start()
    if hasattr(model, "assignments"):
        # In its first epoch DeepCluster assigns no sample, and its own loss is NaN.
        model.assignments.zero_()


def step(model: Any, crops: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step outside a Trainer, with what it logs."""
    logged: dict[str, Tensor] = {}
    model.log = lambda name, value, **_: logged.update({name: value})
    model.log_dict = lambda values, **_: logged.update(values)
    n = len(crops[0])
    loss = model.training_step([torch.arange(n), crops, torch.arange(n) % 10], 0)
    return loss, {name: torch.as_tensor(value).detach() for name, value in logged.items()}


def built(methods: dict[str, Any], name: str, small_crops: int = 0, **method_kwargs: Any) -> Any:
    torch.manual_seed(0)
    cfg = config(name, **method_kwargs)
    cfg.data.num_small_crops = small_crops
    return methods[name](cfg)


def unit(x: Tensor) -> Tensor:
    x = x.detach().double()
    return x / x.norm(dim=1, keepdim=True)


def outputs_of(module: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    return seen


@pytest.fixture
def crops() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(4)]


class TestAlignUniform:
    def test_the_loss_is_the_formula_on_the_projections(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        settings = {"align_weight": 0.98, "uniform_weight": 0.96, "alpha": 1.5, "t": 3.0}
        model = built(methods, "align_uniform", **settings)
        seen = outputs_of(model.projector)
        loss, logged = step(model, crops[:2])
        x, y = map(unit, seen)
        align = float(reference.align(x, y, 1.5))
        uniform = float(sum(reference.log_mean_potential(z, 3.0) for z in (x, y)) / 2)
        assert float(logged["train_align_loss"]) == pytest.approx(align, rel=1e-5)
        assert float(logged["train_uniform_loss"]) == pytest.approx(uniform, rel=1e-5)
        objective = float(loss.detach() - logged["train_class_loss"])
        assert objective == pytest.approx(0.98 * align + 0.96 * uniform, rel=1e-5)

    def test_the_defaults_are_the_papers(self, methods: dict[str, Any]) -> None:
        kwargs = built(methods, "align_uniform").cfg.method_kwargs
        assert [kwargs[k] for k in ("align_weight", "uniform_weight", "alpha", "t")] == [1, 1, 2, 2]

    def test_a_temperature_gives_the_loss_of_that_temperature(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        own = {"t": None, "temperature": 0.25}
        expected = (2, 1, 2, 2)
        for name, kwargs in [
            ("align_uniform", own),
            ("align_uniform_moco", {**own, "queue_size": 16}),
            ("simclr_au", {"temperature": 0.1, "align_uniform": own}),
        ]:
            model = built(methods, name, **kwargs)
            filled = model.cfg.method_kwargs
            filled = filled.align_uniform if name == "simclr_au" else filled
            assert [filled[k] for k in ("align_weight", "uniform_weight", "alpha", "t")] == [
                *expected
            ]
            methods[name](model.cfg)  # as from a checkpoint, whose config is filled in
        loss, logged = step(built(methods, "align_uniform", **own), crops[:2])
        objective = float(loss.detach() - logged["train_class_loss"])
        terms = 2 * logged["train_align_loss"] + logged["train_uniform_loss"]
        assert objective == pytest.approx(float(terms), rel=1e-5)

    def test_small_crops_align_with_large_ones_only(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        model = built(methods, "align_uniform", small_crops=2)
        seen = outputs_of(model.projector)
        _, logged = step(model, [*crops[:2], *(crop[..., :24, :24] for crop in crops[2:])])
        z = [unit(output) for output in seen]
        pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
        align = sum(float(reference.align(z[i], z[j], 2)) for i, j in pairs) / 5
        uniform = sum(float(reference.log_mean_potential(each, 2)) for each in z) / 4
        assert float(logged["train_align_loss"]) == pytest.approx(align, rel=1e-5)
        assert float(logged["train_uniform_loss"]) == pytest.approx(uniform, rel=1e-5)

    def test_a_descent_along_the_gradient_lowers_the_loss(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        model = built(methods, "align_uniform")
        before, _ = step(model, crops[:2])
        before.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
        after, _ = step(model, crops[:2])
        assert after < before

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"t": 0}, "method_kwargs of align_uniform: t must be .*above 0"),
            ({"alpha": -1}, "alpha must be .*above 0"),
            ({"align_weight": -1}, "align_weight must be 0 or above"),
            ({"uniform_weight": "much"}, "uniform_weight must be"),
            ({"uniform_weigth": 2}, "did you mean uniform_weight"),
            ({"tt": 3}, "unknown setting in method_kwargs of align_uniform 'tt'; did you mean t"),
            ({"temperature": 0.5, "t": 2}, "temperature=0.5 .* determines t, 1, got t=2 too"),
            ({"temperature": 0}, "method_kwargs of align_uniform: temperature must be above 0"),
            ({"proj_output_dim": 0}, "proj_output_dim .* at least 1, got 0"),
            ({"proj_hidden_dim": None}, "needs method_kwargs.proj_hidden_dim"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(
        self, methods: dict[str, Any], kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            built(methods, "align_uniform", **kwargs)

    def test_one_crop_is_refused(self, methods: dict[str, Any], crops: list[Tensor]) -> None:
        cfg = config("align_uniform")
        cfg.data.num_large_crops = 1
        with pytest.raises(ValueError, match="needs two crops of an image"):
            step(methods["align_uniform"](cfg), crops[:1])


class TestAlignUniformMoCo:
    @pytest.mark.parametrize("intra_batch", [True, False])
    @pytest.mark.parametrize("alpha", [2.0, 1.0])
    def test_the_loss_is_the_formula_on_queries_keys_and_queue(
        self, methods: dict[str, Any], crops: list[Tensor], intra_batch: bool, alpha: float
    ) -> None:
        model = built(
            methods, "align_uniform_moco", queue_size=24, intra_batch=intra_batch, alpha=alpha
        )
        queue = model.queue.clone()
        queries, keys = outputs_of(model.projector), outputs_of(model.momentum_projector)
        loss, logged = step(model, crops[:2])
        q, k = [unit(z) for z in queries], [unit(z) for z in keys]
        align = float(
            sum((2 - 2 * (q[i] * k[1 - i]).sum(1)).pow(alpha / 2).mean() for i in (0, 1)) / 2
        )
        uniform = float(
            sum(
                reference.log_mean_potential(q[i], 3, queue[1 - i].T, intra_batch=intra_batch)
                for i in (0, 1)
            )
            / 2
        )
        assert float(logged["train_align_loss"]) == pytest.approx(align, rel=1e-5)
        assert float(logged["train_uniform_loss"]) == pytest.approx(uniform, rel=1e-5)
        objective = float(loss.detach() - logged["train_class_loss"])
        assert objective == pytest.approx(3 * align + uniform, rel=1e-5)

    def test_the_queue_advances_as_that_of_stock_mocov2plus(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        ours = built(methods, "align_uniform_moco", queue_size=24)
        stock = built(methods, "mocov2plus", queue_size=24, temperature=0.2)
        stock.load_state_dict(ours.state_dict())
        start = ours.queue.clone()
        for _ in range(4):
            step(ours, crops[:2])
            step(stock, crops[:2])
            assert torch.equal(ours.queue, stock.queue)
            assert torch.equal(ours.queue_ptr, stock.queue_ptr)
        assert int(ours.queue_ptr) == 8
        assert not torch.equal(ours.queue, start)

    def test_the_gradient_is_that_of_the_queue_before_it_advances(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        model = built(methods, "align_uniform_moco", queue_size=8)
        queue = model.queue.clone()
        queries, keys = [], []
        model.projector.register_forward_hook(lambda *call: queries.append(call[2]))
        model.momentum_projector.register_forward_hook(lambda *call: keys.append(call[2]))
        loss, _ = step(model, crops[:2])
        weight = model.projector[2].weight
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        expected = sum(
            (q / q.norm(dim=1, keepdim=True) - k / k.norm(dim=1, keepdim=True))
            .square()
            .sum(1)
            .mean()
            * 1.5
            + reference.log_mean_potential(q / q.norm(dim=1, keepdim=True), 3, old.T) / 2
            for q, k, old in zip(queries, reversed(keys), reversed(queue), strict=True)
        )
        (wanted,) = torch.autograd.grad(expected, weight)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)

    def test_small_crops_are_queries_for_every_key(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        model = built(methods, "align_uniform_moco", small_crops=1, queue_size=16)
        queries, keys = outputs_of(model.projector), outputs_of(model.momentum_projector)
        _, logged = step(model, [*crops[:2], crops[2][..., :24, :24]])
        q, k = [unit(z) for z in queries], [unit(z) for z in keys]
        pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
        align = sum(float(reference.align(q[i], k[j], 2)) for i, j in pairs) / 4
        assert float(logged["train_align_loss"]) == pytest.approx(align, rel=1e-5)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"queue_size": 12}, "multiple of the batch over all ranks, 8 x 1 = 8, got 12"),
            ({"queue_size": 0}, "queue_size .* at least 1, got 0"),
            ({"intra_batch": "yes"}, "intra_batch .* true or false"),
            ({"t": -3}, "t must be .*above 0"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(
        self, methods: dict[str, Any], kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            built(methods, "align_uniform_moco", **kwargs)


class TestWithAlignUniform:
    @pytest.mark.parametrize("name", sorted(KWARGS))
    def test_the_loss_is_the_methods_own_plus_the_weighted_objective(
        self, methods: dict[str, Any], crops: list[Tensor], name: str
    ) -> None:
        settings = {"weight": 0.25, "t": 3.0}
        ours = built(methods, f"{name}_au", **KWARGS[name], align_uniform=settings)
        stock = built(methods, name, **KWARGS[name])
        stock.load_state_dict(ours.state_dict())
        embed = ours.head.mlp if name == "dino" else ours
        seen: list[Tensor] = []
        embed.register_forward_hook(
            lambda module, inputs, out: seen.append((out["z"] if module is ours else out).detach())
        )
        losses = []
        for model in (ours, stock):
            start(model, 8)
            torch.manual_seed(1)
            losses.append(step(model, crops[:2]))
        (total, logged), (own, _) = losses
        x, y = map(unit, seen)
        align = float(reference.align(x, y, 2))
        uniform = float(sum(reference.log_mean_potential(z, 3) for z in (x, y)) / 2)
        assert float(logged["train_align_loss"]) == pytest.approx(align, rel=1e-4)
        assert float(logged["train_uniform_loss"]) == pytest.approx(uniform, rel=1e-4)
        added = float((total - own).detach())
        assert added == pytest.approx(0.25 * (align + uniform), rel=1e-3, abs=1e-5)
        total.backward()
        assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)

    @pytest.mark.parametrize("name", MULTICROP)
    def test_small_crops_are_left_to_the_method(
        self, methods: dict[str, Any], crops: list[Tensor], name: str
    ) -> None:
        small = [crop[..., :24, :24] for crop in crops[2:]]
        model = built(methods, f"{name}_au", small_crops=2, **KWARGS[name])
        seen: list[Tensor] = []
        model.register_forward_hook(lambda module, inputs, out: seen.append(out["z"].detach()))
        start(model, 8)
        _, logged = step(model, [*crops[:2], *small])
        x, y = map(unit, seen)
        assert float(logged["train_align_loss"]) == pytest.approx(
            float(reference.align(x, y, 2)), rel=1e-4
        )

    def test_the_backbone_is_the_one_that_the_method_alone_has(
        self, methods: dict[str, Any]
    ) -> None:
        # solo-learn chooses among its ViTs by the name of the method.
        models = []
        for name in ("mocov3", "mocov3_au"):
            cfg = config(name, **KWARGS["mocov3"])
            cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 32, "patch_size": 16}}
            models.append(methods[name](cfg))
        for part in ("backbone", "momentum_backbone"):
            stock, ours = (getattr(model, part) for model in models)
            assert type(ours) is type(stock)
            assert ours.pos_embed.requires_grad == stock.pos_embed.requires_grad

    def test_validation_keeps_no_features(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        model = built(methods, "simclr_au", **KWARGS["simclr"]).eval()
        model(crops[0])
        assert model._crops == []

    def test_mae_is_refused_with_the_reason(self, methods: dict[str, Any]) -> None:
        from hsplugin_solo import with_align_uniform

        with pytest.raises(ValueError, match="MAE reconstructs masked pixels"):
            with_align_uniform(methods["mae"])
        with pytest.raises(ValueError, match="MAE reconstructs masked pixels"):
            methods["mae_au"](config("mae_au"))

    def test_what_is_no_method_is_refused(self, methods: dict[str, Any]) -> None:
        from hsplugin_solo import with_align_uniform

        with pytest.raises(TypeError, match="subclass of solo"):
            with_align_uniform(methods["linear"])

    def test_a_method_without_z_names_its_embedding(
        self, methods: dict[str, Any], crops: list[Tensor]
    ) -> None:
        from hsplugin_solo import with_align_uniform

        class Renamed(methods["simclr"]):  # type: ignore[misc]
            def forward(self, x: Tensor) -> dict[str, Any]:
                out = super().forward(x)
                self.kept = out.pop("z")
                return out

            def training_step(self, batch: Any, index: int) -> Tensor:
                zs = []
                for x in batch[1]:
                    self(x)
                    zs.append(self.kept)
                return (zs[0] - zs[1]).square().mean()

        with pytest.raises(ValueError, match=r"'z'.*embedding="):
            step(with_align_uniform(Renamed)(config("renamed", temperature=0.2)), crops[:2])
        model = with_align_uniform(Renamed, embedding="projector")(
            config("renamed", temperature=0.2)
        )
        loss, logged = step(model, crops[:2])
        assert torch.isfinite(loss) and logged["train_align_loss"] > 0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"weight": -1}, "weight must be a number, 0 or above"),
            ({"t": 0}, "method_kwargs.align_uniform of simclr_au: t must be .*above 0"),
            ({"aplha": 1}, "did you mean alpha"),
            ({"foo": 1}, "in method_kwargs.align_uniform of simclr_au 'foo'"),
            ({"temperature": 0.5, "alpha": 1}, "determines alpha, 2, got alpha=1 too"),
            (3, "must be a mapping of settings, got 3"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(
        self, methods: dict[str, Any], settings: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            built(methods, "simclr_au", temperature=0.2, align_uniform=settings)
