"""The monitor in real trainings: what it reports, and that it changes nothing."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("pytorch_lightning")

from hsplugin_lightly import GeometryMonitor
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

import hsplugin
from hsplugin.monitor import GeometryWarning
from tests import reference
from tests.metrics import definitions
from tests.monitor.recipes import Recipe, Validated, fit, loader


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x.double(), dim=1)


def expected(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The default metrics in numpy, over all pairs together."""
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    u = unit(x).numpy()
    covariance = np.cov(u.T, bias=True)
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(covariance), 0, None))
    w2 = (u.mean(0) ** 2).sum() + 1 + np.trace(covariance) - 2 / math.sqrt(u.shape[1]) * roots.sum()
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return {
        "alignment": float(reference.align(unit(x), unit(y), 2.0)),
        "uniformity": float(reference.log_mean_potential(unit(x), 2.0)),
        "wasserstein_uniformity": math.sqrt(w2),
        "rankme": math.exp(-(p * np.log(p)).sum()),
    }


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_nothing_is_held(monitor: GeometryMonitor) -> None:
    for watched in monitor._watched.values():
        assert not len(watched.taps._record)
        assert not any(map(len, watched.samples.values()))


class Stop(Callback):
    """Interrupts a training after so many batches, leaving a checkpoint."""

    def __init__(self, after: int, path: Path) -> None:
        self.after = after
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.after and not trainer.is_last_batch:
            self.stop(trainer)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.after:
            self.stop(trainer)

    def stop(self, trainer: Any) -> None:
        if not self.path.exists():
            trainer.save_checkpoint(self.path)
        trainer.should_stop = True
        trainer.fit_loop.epoch_loop.max_steps = self.after


class Resumable:
    """Batches that go on where they were, as Lightning asks of a loader resumed mid-epoch."""

    def __init__(self) -> None:
        self.batches = list(loader())
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Still(Validated):
    """Without dropout and noise, which would go on from another random state after a resume."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone[3].p = 0.0

    def views(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self(batch[0]), self(batch[0].roll(1, dims=1))


def test_epoch_values_are_those_of_all_sampled_batches_together() -> None:
    module = Recipe()
    trainer = fit(module, [GeometryMonitor(every_n_steps=2)])
    pairs = [(a, b) for epoch, index, a, b in module.seen if epoch == 1 and index % 2 == 0]
    assert len(pairs) == 3
    for name, value in expected(pairs).items():
        assert float(trainer.callback_metrics[f"geometry/{name}"]) == pytest.approx(value, abs=1e-5)
    gap = trainer.callback_metrics["geometry/uniformity"] - reference_optimum(6)
    assert float(trainer.callback_metrics["geometry/uniformity_gap"]) == pytest.approx(float(gap))


def reference_optimum(dim: int) -> float:
    scipy = pytest.importorskip("scipy.special")
    return float(-4 + np.log(scipy.hyp0f1(dim / 2, 4.0)))


def test_validation_values_are_those_of_the_whole_set() -> None:
    module = Validated()
    trainer = fit(module, [GeometryMonitor()], validation=loader(seed=3), max_epochs=1)
    assert len(module.validated) == 5
    for name, value in expected(module.validated).items():
        found = float(trainer.callback_metrics[f"geometry/val_{name}"])
        assert found == pytest.approx(value, abs=1e-5)


def test_validation_alone_is_measured_too() -> None:
    module = Validated()
    import pytorch_lightning

    trainer = pytorch_lightning.Trainer(
        callbacks=[GeometryMonitor()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.validate(module, loader(seed=3), verbose=False)
    value = expected(module.validated)["uniformity"]
    assert float(trainer.callback_metrics["geometry/val_uniformity"]) == pytest.approx(value)


def test_a_test_is_measured_like_a_validation() -> None:
    class Tested(Validated):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

    import pytorch_lightning

    module, monitor = Tested(), GeometryMonitor(strict=True)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(callbacks=[monitor], accelerator="cpu", **options)
    trainer.test(module, loader(seed=3), verbose=False)
    for name, value in expected(module.validated).items():
        found = float(trainer.callback_metrics[f"geometry/test_{name}"])
        assert found == pytest.approx(value, abs=1e-5)
    assert len(monitor.test_history) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_two_representations_are_watched_side_by_side(tmp_path: Path) -> None:
    module = Recipe()
    features: list[Tensor] = []
    module.backbone.register_forward_hook(lambda *call: features.append(call[2].detach().clone()))
    names = ["backbone", "projection_head"]
    monitor = GeometryMonitor(module=names, every_n_steps=1, figures=True, strict=True)
    trainer = fit(module, [monitor], max_epochs=1, default_root_dir=tmp_path)
    pairs = {
        "backbone": list(zip(features[::2], features[1::2], strict=True)),
        "projection_head": [(a, b) for _, _, a, b in module.seen],
    }
    for part, two in pairs.items():
        for name, value in expected(two).items():
            found = float(trainer.callback_metrics[f"geometry/{part}/{name}"])
            assert found == pytest.approx(value, abs=1e-5)
            assert monitor.history[0][f"{part}/{name}"] == pytest.approx(value, abs=1e-5)
        assert (tmp_path / "geometry" / part / "epoch-0000-step-00000005.png").exists()
    assert monitor.measured == "the output of 'backbone'; the output of 'projection_head'"


def test_one_representation_that_is_missing_leaves_the_other_alone() -> None:
    monitor = GeometryMonitor(module=["backbone", "head"], every_n_steps=1)
    with pytest.warns(GeometryWarning, match=r"geometry/head monitor: .* names no submodule"):
        fit(Recipe(), [monitor], max_epochs=1)
    assert set(monitor.history[0]) > {"epoch", "backbone/uniformity"}
    assert not any(name.startswith("head/") for name in monitor.history[0])


@pytest.mark.parametrize("manual", [False, True])
def test_a_skipped_step_counts_as_nothing(manual: bool) -> None:
    class Skipping(Recipe):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if batch_idx in (0, 2):
                return None
            loss = super().training_step(batch, batch_idx)
            if not manual:
                return loss
            self.manual_backward(loss)
            return None

    module, monitor = Skipping(), GeometryMonitor(every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeometryWarning)
        fit(module, [monitor], max_epochs=1)
    value = expected([(a, b) for _, _, a, b in module.seen])["uniformity"]
    assert len(module.seen) == 3
    assert monitor.history[0]["uniformity"] == pytest.approx(value, abs=1e-5)


def test_a_manual_optimisation_without_features_is_told_at_the_end_of_the_epoch() -> None:
    class Nothing(Recipe):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.warns(GeometryWarning, match="Nothing is not measured: the criterion"):
        fit(Nothing(), [GeometryMonitor(every_n_steps=1)], max_epochs=1)


def test_what_is_measured_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = GeometryMonitor(every_n_steps=1)
    with caplog.at_level("INFO"):
        fit(Validated(), [monitor], validation=loader(seed=3))
    said = [r.getMessage() for r in caplog.records if r.name == "pytorch_lightning.hsplugin"]
    assert said == ["geometry monitor: measures the inputs of 'criterion' of Validated"]


@pytest.mark.parametrize("alternating", [True, False])
def test_views_whose_rows_alternate_are_warned_of(alternating: bool) -> None:
    class OneCall(Recipe):
        def __init__(self) -> None:
            super().__init__(criterion=nn.MSELoss())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            views = [batch[0], batch[0] + 0.1 * torch.randn_like(batch[0])]
            z = self(torch.stack(views, int(alternating)).flatten(0, 1))
            a, b = (z[::2], z[1::2]) if alternating else z.chunk(2)
            return self.criterion(a, b)

    monitor = GeometryMonitor(every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(OneCall(), [monitor])
    told = [str(w.message) for w in caught if "seem to alternate" in str(w.message)]
    assert monitor.measured == "the output of 'projection_head'"
    assert len(told) == alternating
    assert all("taken for 2 views one after the other" in text for text in told)


def test_step_values_are_those_of_the_latest_sampled_batch() -> None:
    module = Recipe()
    trainer = fit(module, [GeometryMonitor(every_n_steps=3)], max_epochs=1)
    _, _, a, b = module.seen[3]
    values = expected([(a, b)])
    for name in ("alignment", "uniformity"):
        found = float(trainer.callback_metrics[f"geometry/{name}_step"])
        assert found == pytest.approx(values[name], abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 1},
        {"every_n_steps": 2, "figures": True},
        {"module": "projection_head"},
        {"module": ["backbone", "projection_head"], "every_n_steps": 1},
        {"extract": lambda module, outputs, batch: (module(batch[0]), module(batch[0] + 1))},
    ],
    ids=["every step", "figures", "submodule", "two", "extract"],
)
def test_weights_are_bit_identical_with_and_without(options: dict, tmp_path: Path) -> None:
    without, watched = Validated(), Validated()
    fit(without, [], validation=loader(seed=3), max_epochs=3)
    random_without = torch.rand(3)
    monitor = GeometryMonitor(strict=True, **options)
    settings = {"max_epochs": 3, "default_root_dir": tmp_path, "validation": loader(seed=3)}
    fit(watched, [monitor], **settings)
    assert torch.equal(torch.rand(3), random_without)
    assert len(monitor.history) == 3
    assert_identical(weights(without), weights(watched))


@pytest.mark.parametrize("after", [5, 7, 9], ids="at batch {}".format)
def test_resumed_training_equals_the_uninterrupted_one(after: int, tmp_path: Path) -> None:
    def monitor() -> GeometryMonitor:
        return GeometryMonitor(every_n_steps=1, max_samples=24, strict=True)

    whole, interrupted, resumed = Still(), Still(), Still()
    uninterrupted, first, second = monitor(), monitor(), monitor()
    options = {"max_epochs": 3, "validation": loader(seed=3), "num_sanity_val_steps": 0}
    fit(whole, [uninterrupted], train=Resumable(), **options)
    path = tmp_path / "stopped.ckpt"
    fit(interrupted, [first, Stop(after, path)], train=Resumable(), **options)
    fit(resumed, [second], train=Resumable(), ckpt_path=path, **options)
    assert len(uninterrupted.history) == len(uninterrupted.validation_history) == 3
    assert len(resumed.seen) == 15 - after
    assert_identical(weights(whole), weights(resumed))
    assert second.history == uninterrupted.history
    assert second.validation_history == uninterrupted.validation_history


def test_samples_of_an_epoch_that_was_cut_off_at_its_last_batch_do_not_enter_the_next(
    tmp_path: Path,
) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(Still(), [GeometryMonitor(every_n_steps=1), Save()], max_epochs=1)
    module, monitor = Still(), GeometryMonitor(every_n_steps=1)
    fit(module, [monitor], ckpt_path=tmp_path / "last.ckpt", max_epochs=2)
    pairs = [(a, b) for epoch, _, a, b in module.seen if epoch == 1]
    assert monitor.history[-1]["alignment"] == pytest.approx(expected(pairs)["alignment"])


def test_checkpoint_holds_only_plain_values_under_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "stopped.ckpt"
    monitors = [GeometryMonitor(every_n_steps=1), GeometryMonitor(prefix="head", module="backbone")]
    fit(Recipe(), [*monitors, Stop(7, path)])
    states = torch.load(path, weights_only=True)["callbacks"]
    assert {"hsplugin.GeometryMonitor[geometry]", "hsplugin.GeometryMonitor[head]"} <= set(states)
    assert states["hsplugin.GeometryMonitor[geometry]"]["history"] == monitors[0].history[:1]


def test_a_checkpoint_of_a_monitor_of_one_representation_only_is_read() -> None:
    samples = {"stride": 2, "kept": [(0, [torch.eye(3), torch.ones(3, 3), None])]}
    state = {
        "samples": samples,
        "history": [{"epoch": 0, "uniformity": -1.0}],
        "validation_history": [],
        "collapsed": True,
    }
    monitor = GeometryMonitor()
    monitor.load_state_dict(state)
    assert monitor.history == state["history"]
    restored = monitor.state_dict()["watched"][""]
    assert restored["collapsed"]
    assert restored["samples"]["stride"] == 2
    assert torch.equal(restored["samples"]["kept"][0][1][0], torch.eye(3))


AT_EPOCH_END = {"check_on_train_epoch_end": True}, {"save_on_train_epoch_end": True}


@pytest.mark.parametrize(
    ("stage", "trainer_options", "when", "looks"),
    [
        ("", {}, ({}, {}), 1),
        ("", {"validation": loader(seed=3)}, ({}, {}), 1),
        ("", {"validation": loader(seed=3), "val_check_interval": 0.5}, AT_EPOCH_END, 1),
        ("", {"validation": loader(seed=3), "check_val_every_n_epoch": 2}, AT_EPOCH_END, 1),
        ("val_", {"validation": loader(seed=3)}, ({}, {}), 1),
        ("val_", {"validation": loader(seed=3), "val_check_interval": 0.5}, ({}, {}), 2),
    ],
    ids=["no validation", "validation", "twice", "every second", "of validation", "of twice"],
)
def test_early_stopping_and_checkpoints_follow_the_geometry(
    stage: str, trainer_options: dict, when: tuple[dict, dict], looks: int, tmp_path: Path
) -> None:
    name = f"geometry/{stage}uniformity"
    stopping = EarlyStopping(name, mode="min", patience=3, min_delta=100.0, **when[0])
    best = ModelCheckpoint(tmp_path, monitor=name, mode="min", save_top_k=1, **when[1])
    monitor = GeometryMonitor(every_n_steps=1)
    # The stopper stands first in the list and still sees this epoch's value.
    trainer = fit(
        Validated(),
        [stopping, monitor, best],
        max_epochs=20,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        **trainer_options,
    )
    assert trainer.current_epoch == 4 // looks
    history = monitor.validation_history if stage else monitor.history
    assert len(history) == 4
    assert float(best.best_model_score) == pytest.approx(min(row["uniformity"] for row in history))


def test_samples_are_bounded_and_spread_over_the_epoch() -> None:
    class Peek(Callback):
        rows: list[int]

        def on_train_batch_end(self, *_: Any) -> None:
            self.rows = [*getattr(self, "rows", []), len(monitor._watched[""].samples[""])]

    monitor, peek, module = GeometryMonitor(every_n_steps=1, max_samples=30), Peek(), Recipe()
    trainer = fit(module, [monitor, peek], train=loader(rows=12 * 11), max_epochs=1)
    assert max(peek.rows) <= 30
    pairs = [(a, b) for _, index, a, b in module.seen if index % 8 == 0]
    value = expected(pairs)["uniformity"]
    assert float(trainer.callback_metrics["geometry/uniformity"]) == pytest.approx(value, abs=1e-5)


def test_nothing_is_left_in_the_module() -> None:
    module, monitor = Recipe(), GeometryMonitor()
    fit(module, [monitor])
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in module.modules()]
    assert not any(hooks)
    assert_nothing_is_held(monitor)


def test_a_second_training_starts_a_history_of_its_own() -> None:
    monitor = GeometryMonitor()
    for _ in range(2):
        fit(Validated(), [monitor], validation=loader())
        assert [row["epoch"] for row in monitor.history] == [0, 1]
        assert [row["epoch"] for row in monitor.validation_history] == [0, 1]


def test_a_training_that_goes_on_goes_on_with_its_history() -> None:
    monitor = GeometryMonitor()
    module = Recipe()
    trainer = fit(module, [monitor])
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader())
    assert [row["epoch"] for row in monitor.history] == [0, 1, 2]


def test_nothing_is_left_in_the_module_of_a_training_that_failed() -> None:
    class Failing(Recipe):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("out of data")

    module, monitor = Failing(), GeometryMonitor()
    with pytest.raises(RuntimeError, match="out of data"):
        fit(module, [monitor])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert_nothing_is_held(monitor)


class Recorded(TorchDispatchMode):
    """Operations that make the host wait for a device, seen wherever they are dispatched."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indexed_by_mask = name == "index" and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        if any(name.startswith(wait) for wait in self.WAITS) or indexed_by_mask or moved:
            self.operations.append(f"waits: {name}")
        self.operations.append(name)
        return func(*args, **(kwargs or {}))


def test_no_host_synchronisation_within_the_step() -> None:
    recorded = Recorded()

    class Watched(GeometryMonitor):
        def on_train_batch_start(self, *args: Any) -> None:
            with recorded:
                super().on_train_batch_start(*args)

        def on_train_batch_end(self, *args: Any) -> None:
            with recorded:
                super().on_train_batch_end(*args)

    fit(Recipe(), [Watched(every_n_steps=1, strict=True)], max_epochs=1)
    assert recorded.operations.count("clone") >= 10
    assert not [name for name in recorded.operations if name.startswith("waits")]


def test_recorder_sees_a_synchronisation() -> None:
    with Recorded() as recorded:
        x = torch.rand(3)
        float(x.sum())
        x[x > 0.5]
    waits = [name for name in recorded.operations if name.startswith("waits")]
    assert waits == ["waits: _local_scalar_dense", "waits: index"]


@pytest.mark.filterwarnings("error::hsplugin.monitor.GeometryWarning")
def test_half_precision_features_are_measured() -> None:
    module, monitor = Recipe(), GeometryMonitor(every_n_steps=1)
    fit(module, [monitor], precision="bf16-mixed", max_epochs=1)
    value = expected([(a, b) for _, _, a, b in module.seen])["uniformity"]
    assert module.seen[0][2].dtype == torch.bfloat16
    assert monitor.history[0]["uniformity"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("what", ["projection_head", "whole"])
def test_compiled_modules_are_measured(backend: str, what: str) -> None:
    torch._dynamo.reset()
    module, plain = Recipe(), Recipe()
    monitor = GeometryMonitor(every_n_steps=2, strict=True, module="projection_head")
    fit(plain, [GeometryMonitor(every_n_steps=2)])
    if what == "whole":
        module.compile(backend=backend)
        fit(torch.compile(module, backend=backend), [monitor])
    else:
        module.projection_head.compile(backend=backend)
        fit(module, [monitor])
    pairs = [(a, b) for epoch, index, a, b in module.seen if epoch == 1 and index % 2 == 0]
    assert monitor.history[1]["alignment"] == pytest.approx(expected(pairs)["alignment"], rel=1e-5)


class Crops(Recipe):
    """Ten views a step, of which the first two are compared, and a compiled backbone."""

    def __init__(self, counter: CompileCounter, within: bool) -> None:
        super().__init__()
        if within:
            self.backbone.compile(backend=counter, fullgraph=True)
        else:
            self.backbone = torch.compile(self.backbone, backend=counter, fullgraph=True)

    def views(self, batch: Any) -> Any:
        first, second, *_ = [self(batch[0] + 0.1 * view) for view in range(10)]
        return first, second

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.views(batch)


@pytest.mark.parametrize(("within", "more"), [(False, 0), (True, 2)])
def test_a_compiled_module_is_not_compiled_for_every_view(within: bool, more: int) -> None:
    def compilations(callbacks: list[Any]) -> int:
        torch._dynamo.reset()
        counter = CompileCounter()
        fit(Crops(counter, within), callbacks, validation=loader(seed=3))
        return counter.frame_count

    modes = 2  # training and validation
    assert compilations([]) == modes
    assert compilations([GeometryMonitor(strict=True)]) == modes * (1 + more)


def test_collapse_is_warned_of_with_its_numbers() -> None:
    class Constant(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).square().mean() + ((a - 1) ** 2).mean()

    with pytest.warns(GeometryWarning, match=r"collapse: uniformity is -0\.\d+.*best possible.*6"):
        fit(Recipe(criterion=Constant()), [GeometryMonitor(every_n_steps=1)], max_epochs=8)


def test_a_healthy_training_is_not_called_a_collapse() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeometryWarning)
        fit(Recipe(), [GeometryMonitor(every_n_steps=1)], max_epochs=4)


def test_rows_with_nan_are_left_out_with_one_warning() -> None:
    class Poisoned(Recipe):
        def views(self, batch: Any) -> tuple[Tensor, Tensor]:
            a, b = super().views(batch)
            return a, torch.cat([b[:-1], torch.full_like(b[-1:], float("nan"))])

    class AllButLast(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return hsplugin.align_loss(a[:-1], b[:-1])

    module, monitor = Poisoned(criterion=AllButLast()), GeometryMonitor(every_n_steps=1)
    with pytest.warns(GeometryWarning, match="NaN or infinite features are left out: 5") as caught:
        fit(module, [monitor])
    assert len([w for w in caught if w.category is GeometryWarning]) == 1
    pairs = [(a[:-1], b[:-1]) for epoch, _, a, b in module.seen if epoch == 0]
    assert monitor.history[0]["alignment"] == pytest.approx(expected(pairs)["alignment"], rel=1e-5)


def test_failing_metric_neither_stops_training_nor_harms_the_others() -> None:
    from hsplugin import metrics

    chosen = {"alpha_req": metrics.AlphaReQ(), "uniformity": metrics.Uniformity()}
    monitor = GeometryMonitor(chosen, every_n_steps=1)
    with pytest.warns(GeometryWarning, match="alpha_req is not measured: fit_range"):
        trainer = fit(Recipe(), [monitor])
    assert trainer.current_epoch == 2
    assert set(monitor.history[1]) == {
        "epoch",
        "uniformity",
        "uniformity_gap",
        "uniformity_within_class",
    }
    with pytest.raises(ValueError, match="alpha_req"):
        fit(Recipe(), [GeometryMonitor(["alpha_req"], strict=True)])


def test_a_failing_update_is_named_as_the_reason() -> None:
    from hsplugin import metrics

    def extract(module: Any, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"x": module(batch[0]), "labels": batch[1].float()}

    monitor = GeometryMonitor({"tolerance": metrics.Tolerance(3)}, extract=extract)
    with pytest.warns(GeometryWarning, match="labels must be integers"):
        fit(Recipe(), [monitor], max_epochs=1)


def test_failing_extract_function_never_stops_training() -> None:
    def extract(module: Any, outputs: Any, batch: Any) -> Tensor:
        raise KeyError("features")

    with pytest.warns(GeometryWarning, match="KeyError: 'features'") as caught:
        trainer = fit(Recipe(), [GeometryMonitor(extract=extract, every_n_steps=1)])
    assert trainer.current_epoch == 2
    assert len([w for w in caught if w.category is GeometryWarning]) == 1
    with pytest.raises(KeyError):
        fit(Recipe(), [GeometryMonitor(extract=extract, strict=True)])


def test_labels_of_the_batch_reach_the_metrics_that_take_them() -> None:
    from hsplugin import metrics

    monitor = GeometryMonitor({"tolerance": metrics.Tolerance(3)}, every_n_steps=1)
    module = Recipe()
    fit(module, [monitor], max_epochs=1)
    x = unit(torch.cat([a for _, _, a, _ in module.seen])).numpy()
    labels = loader().dataset.tensors[1].numpy()
    same = labels[:, None] == labels
    np.fill_diagonal(same, False)
    value = ((x @ x.T) * same).sum() / (len(x) * (len(x) - 1))
    assert monitor.history[0]["tolerance"] == pytest.approx(value)


def test_knn_is_logged_where_batches_have_labels_and_goes_without_saying_elsewhere() -> None:
    module, monitor = Recipe(), GeometryMonitor(every_n_steps=1, strict=True)
    fit(module, [monitor], max_epochs=1)
    data, labels = loader().dataset.tensors
    x = torch.cat([a for _, _, a, _ in module.seen]).numpy()
    assert monitor.history[0]["knn"] == pytest.approx(definitions.knn(x, labels.numpy(), 59))
    unlabelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=12)
    monitor = GeometryMonitor(every_n_steps=1, strict=True)
    fit(Recipe(), [monitor], train=unlabelled, max_epochs=1)
    assert "rankme" in monitor.history[0]
    assert "knn" not in monitor.history[0]


def test_wide_features_are_measured_from_the_gram_matrix_of_their_rows() -> None:
    names = ["wasserstein_uniformity", "rankme", "effective_rank", "nesum"]
    module, monitor = Recipe(dim=2100), GeometryMonitor(names, every_n_steps=1)
    fit(module, [monitor], max_epochs=1)
    x = torch.cat([a for _, _, a, _ in module.seen]).double().numpy()
    assert x.shape == (len(loader().dataset), 2100)
    expected = {
        "wasserstein_uniformity": definitions.wasserstein_uniformity(definitions.unit(x)),
        "rankme": definitions.rankme(x),
        "effective_rank": definitions.effective_rank(x),
        "nesum": definitions.nesum(x),
    }
    for name, value in expected.items():
        assert monitor.history[0][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ["alignement"]}, ValueError, "'alignement' is unknown"),
        ({"metrics": "alignment"}, TypeError, "list of names"),
        ({"metrics": []}, ValueError, "metrics is empty"),
        ({"metrics": {"a": 3}}, TypeError, r"metrics\['a'\]"),
        ({"every_n_steps": 0}, ValueError, "every_n_steps must be at least 1"),
        ({"every_n_steps": 1.5}, TypeError, "every_n_steps must be an integer"),
        ({"max_samples": 1}, ValueError, "max_samples must be at least 2"),
        ({"prefix": ""}, ValueError, "prefix"),
        ({"module": "head", "extract": print}, ValueError, "not both"),
        ({"module": ["head", "head"]}, ValueError, "twice"),
        ({"module": []}, TypeError, "module must be the name"),
        ({"module": 3}, TypeError, "module must be the name"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GeometryMonitor(**arguments)


def test_labels_that_a_validation_lacks_are_told_once() -> None:
    monitor = GeometryMonitor(["uniformity"], labels=1)
    unlabelled = DataLoader(TensorDataset(torch.randn(24, 10)), batch_size=12)
    with pytest.warns(GeometryWarning) as caught:
        fit(Validated(), [monitor], validation=unlabelled)
    messages = [str(w.message) for w in caught if issubclass(w.category, GeometryWarning)]
    [message] = messages
    assert "Validated is not measured: labels=1 is not in the batch" in message
    assert len(monitor.history) == 2 and not monitor.validation_history
