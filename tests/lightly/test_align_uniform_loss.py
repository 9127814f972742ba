"""Our criterion beside Lightly's own: equal where they overlap, right where Lightly's fails."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.nn.functional import normalize

import hsplugin
from tests import reference

lightly_loss = pytest.importorskip("lightly.loss")

from hsplugin_lightly import AlignUniformLoss  # noqa: E402
from lightly.loss.hypersphere_loss import HypersphereLoss  # noqa: E402


def views(n: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x, x + 0.3 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("n", [2, 33, 256])
@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_equals_the_hypersphere_loss_of_lightly(n, t, alpha):
    z_a, z_b = views(n, 64)
    ours, theirs = z_a.clone().requires_grad_(), z_a.clone().requires_grad_()
    our_loss = AlignUniformLoss(uniform_weight=0.5, t=t, alpha=alpha)(z_a=ours, z_b=z_b)
    # lam weighs the mean uniformity of the two views.
    their_loss = HypersphereLoss(t=t, lam=0.5, alpha=alpha)(theirs, z_b)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_memory_bank_form_equals_the_definition_and_advances_as_that_of_ntxent():
    ours = AlignUniformLoss(3.0, 1.0, t=3.0, memory_bank_size=(16, 8))
    theirs = lightly_loss.NTXentLoss(memory_bank_size=(16, 8))
    theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
    for step in range(5):
        z_a, z_b = views(6, 8, seed=step)
        z_a.requires_grad_()
        bank = ours.memory_bank.bank.clone()
        terms = ours.components(z_a, z_b)
        theirs(z_a, z_b)
        query, key = normalize(z_a.double(), dim=1), normalize(z_b.double(), dim=1)
        assert terms.align.item() == pytest.approx(reference.align(query, key, 2).item(), rel=1e-5)
        uniform = reference.log_mean_potential(query, 3.0, queue=bank)
        assert terms.uniform.item() == pytest.approx(uniform.item(), rel=1e-5)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)


def test_memory_bank_stays_as_it_is_in_evaluation():
    criterion = AlignUniformLoss(memory_bank_size=(16, 8), intra_batch=False)
    before = criterion.memory_bank.bank.clone()
    z_a, z_b = views(6, 8)
    value = criterion.components(z_a, z_b).uniform
    assert torch.equal(criterion.memory_bank.bank, before)
    expected = reference.log_mean_potential(
        normalize(z_a.double(), dim=1), 2.0, queue=before, intra_batch=False
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_query_has_pairs_with_the_bank():
    criterion = AlignUniformLoss(memory_bank_size=(16, 8))
    z_a, z_b = views(1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = criterion.components(z_a, z_b).uniform
    expected = reference.log_mean_potential(
        normalize(z_a.double(), dim=1), 2.0, queue=criterion.memory_bank.bank, intra_batch=False
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_bank_takes_two_views_in_any_form_and_refuses_others():
    criterion = AlignUniformLoss(memory_bank_size=(16, 8))
    z_a, z_b = views(6, 8)
    assert criterion(torch.stack([z_a, z_b], 1)) == criterion(z_a, z_b)
    for arguments, labels in [((z_a, z_b, z_a), None), ((z_a,), torch.arange(6))]:
        with pytest.raises(ValueError, match="with a memory bank"):
            criterion(*arguments, labels=labels)
    assert AlignUniformLoss()(z_a, z_b, z_a) == hsplugin.AlignUniformLoss()(z_a, z_b, z_a)


def test_a_temperature_gives_the_value_and_gradient_of_ntxent():
    n, tau = 2048, 0.5
    z_a, z_b = views(n, 16)
    ours, theirs = z_a.clone().requires_grad_(), z_a.clone().requires_grad_()
    our_loss = AlignUniformLoss.from_temperature(tau)(ours, z_b)
    their_loss = lightly_loss.NTXentLoss(temperature=tau)(theirs, z_b)
    our_loss.backward()
    their_loss.backward()
    assert our_loss.item() == pytest.approx(their_loss.item() - math.log(2 * n - 1), abs=2e-3)
    assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_a_temperature_with_a_bank_gives_the_value_and_gradient_of_ntxent_with_one():
    size, tau = 8192, 0.5
    ours = AlignUniformLoss.from_temperature(
        tau, memory_bank_size=(size, 16), intra_batch=False, backend="tiled"
    )
    theirs = lightly_loss.NTXentLoss(temperature=tau, memory_bank_size=(size, 16))
    theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
    z_a, z_b = views(256, 16)
    leaf_a, leaf_b = z_a.clone().requires_grad_(), z_a.clone().requires_grad_()
    our_loss, their_loss = ours(leaf_a, z_b), theirs(leaf_b, z_b)
    our_loss.backward()
    their_loss.backward()
    assert our_loss.item() == pytest.approx(their_loss.item() - math.log(size + 1), abs=2e-3)
    assert (leaf_a.grad - leaf_b.grad).norm() < 0.02 * leaf_b.grad.norm()


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    criterion = AlignUniformLoss(memory_bank_size=(16, 6), gather_distributed=True)
    queries, keys = torch.randn(2, 7, 6)
    own = slice(0, 4) if rank == 0 else slice(4, 7)
    value = criterion(queries[own].requires_grad_(), keys[own])
    torch.save([value.detach(), criterion.memory_bank.bank, keys], f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_keys_of_uneven_ranks_join_the_bank_of_each(tmp_path):
    torch.multiprocessing.spawn(on_rank, args=(str(tmp_path),), nprocs=2)
    (value, bank, keys), (other_value, other_bank, _) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    torch.testing.assert_close(bank[:7], torch.nn.functional.normalize(keys, dim=1))
    assert torch.equal(bank, other_bank) and torch.equal(value, other_value)
