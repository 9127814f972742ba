"""Alignment by label against the definition in float64, and against the losses it stands for."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import hsplugin
from tests import reference


def definition(rows: Tensor, labels: list[int], alpha: float) -> Tensor:
    """Mean over rows with a positive of the mean over their positives."""
    found = []
    for i, label in enumerate(labels):
        positives = [p for p, other in enumerate(labels) if other == label and p != i]
        if positives:
            found.append((rows[i] - rows[positives]).norm(dim=1).pow(alpha).mean())
    return torch.stack(found).mean() if found else 0 * rows.sum()


@settings(max_examples=60)
@given(
    n=st.integers(2, 30),
    v=st.integers(1, 3),
    d=st.sampled_from([2, 5, 64]),
    classes=st.integers(1, 20),
    alpha=st.sampled_from([0.5, 1.0, 2.0, 2.0, 3.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@pytest.mark.filterwarnings("ignore:.*no two are equal")
def test_positives_of_a_class_have_the_value_and_gradient_of_the_definition(
    n, v, d, classes, alpha, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, v, d, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(-classes, classes, (n,), generator=generator)
    leaf = features.clone().requires_grad_()
    terms = hsplugin.AlignUniformLoss(0.7, 1.3, alpha, 3.0).components(leaf, labels=labels)
    terms.loss.backward()

    exact = features.double().requires_grad_()
    unit = normalize(exact, dim=2)
    align = definition(unit.flatten(0, 1), labels.repeat_interleave(v).tolist(), alpha)
    uniform = sum(reference.log_mean_potential(unit[:, i], 3.0) for i in range(v)) / v
    (0.7 * align + 1.3 * uniform).backward()
    eps = torch.finfo(terms.loss.dtype).eps
    assert terms.align.item() == pytest.approx(align.item(), rel=100 * eps, abs=10 * eps)
    assert terms.uniform.item() == pytest.approx(uniform.item(), abs=200 * eps)
    error = (leaf.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2000 * eps + 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_sample_as_the_label_gives_the_loss_of_views(alpha):
    features = torch.randn(9, 3, 8, dtype=torch.float64)
    loss = hsplugin.AlignUniformLoss(alpha=alpha)
    by_label = loss.components(features, labels=torch.arange(9).flip(0))
    for one, other in zip(by_label, loss.components(features), strict=True):
        torch.testing.assert_close(one, other)
    alone = hsplugin.AlignLoss(alpha)(features, labels=torch.arange(9))
    torch.testing.assert_close(alone, by_label.align)


def test_crops_of_uneven_number_are_rows_labelled_by_their_sample():
    crops = [torch.randn(k, 8, dtype=torch.float64) for k in (2, 1, 5, 3)]
    samples = torch.arange(4).repeat_interleave(torch.tensor([2, 1, 5, 3]))
    rows = torch.cat(crops)
    terms = hsplugin.AlignUniformLoss().components(rows, labels=samples)
    of_rows = []
    for of_sample in crops:
        unit = normalize(of_sample, dim=1)
        for i, j in itertools.permutations(range(len(unit)), 2):
            of_rows.append(((unit[i] - unit[j]).square().sum() / (len(unit) - 1)).item())
    assert terms.align.item() == pytest.approx(sum(of_rows) / 10)  # one row has no positive
    expected = reference.log_mean_potential(normalize(rows, dim=1), 2.0)
    torch.testing.assert_close(terms.uniform, expected)


def supcon(features: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Khosla et al., 2020, their L_out, less the logarithm of the rows in the denominator."""
    z, labels = normalize(features.flatten(0, 1), dim=1), labels.repeat_interleave(2)
    similar = (z @ z.T / tau).fill_diagonal_(-math.inf)
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    log_share = similar - similar.logsumexp(1, keepdim=True)
    of_row = log_share.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    return -of_row.mean() - math.log(len(z) - 1)


def test_a_temperature_with_labels_gives_the_limit_of_supcon():
    generator = torch.Generator().manual_seed(0)
    tau, values, gradients = 0.5, [], []
    loss = hsplugin.AlignUniformLoss.from_temperature(tau)
    for n in (128, 1024):
        # Small classes of unequal size, around directions uniform on the sphere.
        labels = torch.randint(n // 3, (n,), generator=generator)
        centres = torch.randn(n // 3, 1, 16, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, 2, 16, generator=generator, dtype=torch.float64)
        ours = (centres[labels] + 0.5 * noise).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        one, other = loss(ours, labels=labels), supcon(theirs, labels, tau)
        one.backward()
        other.backward()
        values.append(abs((one - other).item()))
        gradients.append(((ours.grad - theirs.grad).norm() / theirs.grad.norm()).item())
    assert values[0] / values[1] > 4 and values[1] < 0.02  # rows grow eightfold
    assert gradients[0] / gradients[1] > 2 and gradients[1] < 0.1


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_memory_does_not_grow_with_the_number_of_pairs(alpha):
    # 800 rows of one class: 320000 pairs, whose differences alone would take 80 MiB.
    x = torch.randn(800, 32, requires_grad=True)
    labels = torch.zeros(800, dtype=torch.long)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hsplugin.AlignLoss(alpha)(x, labels=labels)
    assert sum(saved.values()) < 20 * x.nbytes


def test_labels_that_are_all_different_warn_once_and_leave_uniformity():
    x = torch.randn(6, 4, requires_grad=True)
    loss = hsplugin.AlignUniformLoss()
    with pytest.warns(UserWarning, match="no two are equal"):
        terms = loss.components(x, labels=torch.arange(6))
    assert terms.align == 0
    torch.testing.assert_close(terms.loss, hsplugin.UniformLoss()(x))
    terms.align.backward()
    assert x.grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 0, 1, 1], TypeError, "labels must be a torch.Tensor, got list"),
        (torch.zeros(4), TypeError, "labels must be integers, got torch.float32"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"shape \(4,\).* got \(3,\)"),
        (torch.zeros(4, dtype=torch.long, device="meta"), ValueError, "device, cpu, got meta"),
    ],
)
def test_labels_of_another_kind_number_or_device_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        hsplugin.AlignUniformLoss()(torch.randn(4, 2, 3), labels=labels)


def test_a_row_that_is_not_finite_makes_the_loss_nan_even_alone_in_its_class():
    x = torch.randn(5, 3)
    x[0, 0] = math.nan
    for alpha in (1.0, 2.0):
        terms = hsplugin.AlignUniformLoss(alpha=alpha).components(
            x, labels=torch.tensor([0, 1, 1, 2, 2])
        )
        assert terms.align.isnan() and terms.loss.isnan()


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_labels_are_transformed_and_differentiated_twice(alpha):
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    loss = hsplugin.AlignUniformLoss(0.7, 1.3, alpha)

    def exact(x: Tensor, labels: Tensor) -> Tensor:
        unit = x / x.norm(dim=2, keepdim=True)
        align = definition(unit.flatten(0, 1), labels.repeat_interleave(2).tolist(), alpha)
        uniform = sum(reference.log_mean_potential(unit[:, i], 2.0) for i in range(2)) / 2
        return 0.7 * align + 1.3 * uniform

    several = torch.stack([torch.arange(8) // 2, torch.arange(8) % 2])
    values = torch.func.vmap(lambda labels: loss(x, labels=labels))(several)
    torch.testing.assert_close(values, torch.stack([exact(x, labels) for labels in several]))
    labels = several[0]
    gradients = torch.func.vmap(torch.func.grad(lambda z: loss(z, labels=labels)))(
        torch.stack([x, x.flip(0)])
    )
    for z, found in zip((x, x.flip(0)), gradients, strict=True):
        leaf = z.clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(exact(leaf, labels), leaf)[0])
    leaf, penalties = x.clone().requires_grad_(), []
    for value in (loss(leaf, labels=labels), exact(leaf, labels)):
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    torch.testing.assert_close(*penalties)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_labels_are_compiled_without_a_break_of_the_graph(alpha):
    torch._dynamo.reset()
    x, labels = torch.randn(12, 2, 4, requires_grad=True), torch.arange(12) % 5
    loss = hsplugin.AlignUniformLoss(alpha=alpha)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, labels=labels)
    torch.testing.assert_close(compiled, loss(x, labels=labels))
    (gradient,) = torch.autograd.grad(compiled, x)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(x, labels=labels), x)[0])


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=3)
    features, labels = torch.load(f"{folder}/all.pt")
    own = [slice(0, 6), slice(6, 6), slice(6, 7)][rank]
    results = []
    for alpha in (1.0, 2.0):
        weight = torch.nn.Linear(4, 4, bias=False).double()
        torch.nn.init.eye_(weight.weight)
        model = torch.nn.parallel.DistributedDataParallel(weight)
        loss = hsplugin.AlignUniformLoss(alpha=alpha, gather_distributed=True)
        value = loss(model(features[own]), labels=labels[own])
        value.backward()
        results += [value.detach(), weight.weight.grad]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_classes_over_uneven_ranks_have_the_gradient_of_one_process(tmp_path: Path):
    features = torch.randn(7, 2, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 1])
    torch.save([features, labels], tmp_path / "all.pt")
    torch.multiprocessing.spawn(on_rank, args=(str(tmp_path),), nprocs=3)
    expected = []
    for alpha in (1.0, 2.0):
        weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
        value = hsplugin.AlignUniformLoss(alpha=alpha)(features @ weight.T, labels=labels)
        value.backward()
        expected += [value.detach(), weight.grad]
    for rank in range(3):
        for one, other in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(one, other)
