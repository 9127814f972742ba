"""Ranks together against one process with the whole batch, by an independent definition.

Every rank runs as a process of its own in a gloo group; one group per number of ranks runs all
cases and saves what each rank saw, because starting processes is what takes the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import hsplugin
from hsplugin.potential import log_mean_potential
from hsplugin.potential.distributed import mean_over_ranks
from tests import reference

DIM = 5
WORLDS = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    """One call of the potential: pairs, width, and how rows lie and are split over ranks."""

    t: float = 2.0
    queue: bool = False
    intra_batch: bool = True
    include_self: bool = False
    uneven: bool = False
    single: bool = False
    empty: bool = False
    layout: str = "sphere"
    dtype: torch.dtype = torch.float64
    backend: str = "auto"

    def sizes(self, world: int) -> list[int]:
        if self.single:  # every rank but the first has one row, which alone has no pair
            return [2] + [1] * (world - 1)
        if self.empty:  # the last rank has nothing, unless it is the only one
            return ([4, 0] if world == 2 else [4, 3, 0])[:world]
        return [[7, 3, 10][r] if self.uneven else 6 for r in range(world)]

    def rows(self, world: int) -> Tensor:
        generator = torch.Generator().manual_seed(world)
        count = sum(self.sizes(world))
        x = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
        if self.layout == "sphere":
            x = nn.functional.normalize(x, dim=1)
        elif self.layout == "poles":  # no exponential of a squared distance here is above zero
            x = torch.zeros_like(x)
            x[:, 0] = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
            x[:, 1] = torch.arange(count) / 0.7
        elif self.layout == "collapsed":
            x = torch.ones_like(x) / DIM**0.5
        return x.to(self.dtype)

    def queue_rows(self) -> Tensor | None:
        if not self.queue:
            return None
        generator = torch.Generator().manual_seed(99)
        keys = torch.randn(11, DIM, generator=generator, dtype=torch.float64)
        return nn.functional.normalize(keys, dim=1).to(self.dtype)


CASES = {
    "self": Case(),
    "self_uneven": Case(uneven=True),
    "self_one_row_each": Case(single=True),
    "self_empty_rank": Case(empty=True),
    "queue_empty_rank": Case(empty=True, queue=True),
    "include_self_empty_rank": Case(empty=True, include_self=True),
    "self_reference_engine": Case(uneven=True, backend="reference"),
    "include_self": Case(include_self=True, uneven=True),
    "queue_and_batch": Case(queue=True),
    "queue_and_batch_uneven": Case(queue=True, uneven=True, t=3.0),
    "queue_and_batch_include_self": Case(queue=True, uneven=True, include_self=True),
    "queue_only": Case(queue=True, intra_batch=False),
    "queue_only_uneven": Case(queue=True, intra_batch=False, uneven=True),
    "large_t": Case(t=1000.0, uneven=True),
    "large_t_poles": Case(t=1000.0, uneven=True, layout="poles"),
    "large_t_queue": Case(t=1000.0, uneven=True, queue=True),
    "collapsed": Case(uneven=True, layout="collapsed"),
    "off_the_sphere": Case(uneven=True, layout="gaussian", t=0.5),
    "float32": Case(uneven=True, dtype=torch.float32),
    "bfloat16": Case(uneven=True, dtype=torch.bfloat16),
}


def own_rows(rank: int, sizes: list[int], x: Tensor) -> Tensor:
    return torch.split(x, sizes)[rank].clone()


def run_case(case: Case, rank: int, world: int) -> dict[str, Tensor]:
    x = own_rows(rank, case.sizes(world), case.rows(world)).requires_grad_()
    value = log_mean_potential(
        x,
        case.t,
        queue=case.queue_rows(),
        intra_batch=case.intra_batch,
        include_self=case.include_self,
        gather_distributed=True,
        backend=case.backend,
    )
    value.backward()
    return {"value": value.detach(), "gradient": x.grad}


def two_views(world: int, uneven: bool) -> tuple[Tensor, Tensor, list[int]]:
    sizes = [[4, 2, 5][r] if uneven else 4 for r in range(world)]
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(2, sum(sizes), 6, generator=generator, dtype=torch.float64)
    return a, b, sizes


def new_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, DIM)).double()


def train(model: nn.Module, a: Tensor, b: Tensor, gather: bool) -> dict[str, Any]:
    """Three steps, one with each loss; returns the values and the learned weights."""
    losses = [
        hsplugin.AlignUniformLoss(1.5, 0.7, gather_distributed=gather),
        hsplugin.AlignLoss(alpha=1.0, gather_distributed=gather),
        hsplugin.UniformLoss(t=5.0, gather_distributed=gather),
    ]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    values = []
    for loss in losses:
        optimiser.zero_grad()
        value = loss(model(a), model(b))
        value.backward()
        optimiser.step()
        values.append(value.detach())
    return {"values": torch.stack(values), "weights": [p.detach() for p in model.parameters()]}


def run_training(rank: int, world: int, uneven: bool) -> dict[str, Any]:
    a, b, sizes = two_views(world, uneven)
    model = nn.parallel.DistributedDataParallel(new_model())
    return train(model, own_rows(rank, sizes, a), own_rows(rank, sizes, b), gather=True)


def empty_on_one_rank(rank: int, world: int) -> dict[str, Tensor]:
    """Every loss where the last of several ranks has no rows."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 4 * world, DIM, generator=generator, dtype=torch.float64)
    own = slice(0, 0) if 0 < rank == world - 1 else slice(4 * rank, 4 * rank + 4)
    leaves = [a[own].clone().requires_grad_(), b[own].clone().requires_grad_()]
    terms = hsplugin.AlignUniformLoss(gather_distributed=True).components(*leaves)
    terms.loss.backward()
    alone = hsplugin.UniformLoss(gather_distributed=True)(leaves[0].detach())
    values = torch.stack([*terms, alone]).detach()
    return {"a": a, "b": b, "own": a[own], "values": values, "gradient": leaves[0].grad}


def run_compiled(rank: int, world: int) -> dict[str, Tensor]:
    case = CASES["self_uneven"]
    loss = hsplugin.AlignUniformLoss(normalize=False, gather_distributed=True)
    x = own_rows(rank, case.sizes(world), case.rows(world))
    seen = {}
    for name, function in {
        "eager": loss,
        "compiled": torch.compile(loss, fullgraph=True, backend="aot_eager"),
    }.items():
        leaf = x.clone().requires_grad_()
        value = function(leaf, leaf.flip(1))
        value.backward()
        seen[name], seen[f"{name}_gradient"] = value.detach(), leaf.grad
    return seen


def backward_on_one_rank(rank: int) -> bool:
    """Only rank 0 runs backward: a collective there would hang."""
    x = CASES["self"].rows(1).requires_grad_()
    value = hsplugin.AlignUniformLoss(gather_distributed=True)(x, x.flip(1))
    if rank == 0:
        value.backward()
    dist.barrier()
    return rank != 0 or bool(x.grad.isfinite().all())


def beyond_one_backward(rank: int) -> dict[str, str]:
    """What each rank is told, without waiting for others, where a loss cannot be right."""
    x = CASES["self"].rows(1).requires_grad_()
    whole = hsplugin.AlignUniformLoss(gather_distributed=True)
    align = hsplugin.AlignLoss(gather_distributed=True)
    seen = {}
    for name, loss in {
        "potential": lambda z: log_mean_potential(z, gather_distributed=True),
        "whole": lambda z: whole(z, z.flip(1)),
    }.items():
        (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
        seen[f"{name} twice"] = told(lambda gradient=gradient: gradient.sum().backward())
        seen[f"{name} grad"] = told(lambda loss=loss: torch.func.grad(loss)(x))
        seen[f"{name} jvp"] = told(lambda loss=loss: torch.func.jvp(loss, (x,), (x,)))
    seen["align vmap"] = told(lambda: torch.func.vmap(align)(x[None], x[None]))
    seen["align jvp"] = told(lambda: torch.func.jvp(align, (x, x), (x, x)))
    return seen


def told(call: Any) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def collectives(rank: int, world: int) -> dict[str, int]:
    """How many collectives each loss takes, by torch's own record of what ran."""
    generator = torch.Generator().manual_seed(rank)
    views = torch.randn(5, 4 + rank, DIM, generator=generator).requires_grad_().unbind()
    whole = hsplugin.AlignUniformLoss(gather_distributed=True)
    pairs = [(i, j) for i in range(2) for j in range(i + 1, 5)]
    calls = {
        "two views": lambda: whole(*views[:2]),
        "five crops": lambda: whole.of_views({f"crop {i}": z for i, z in enumerate(views)}, pairs)[
            0
        ],
        "alignment": lambda: hsplugin.AlignLoss(gather_distributed=True)(*views[:2]),
        "uniformity": lambda: hsplugin.UniformLoss(gather_distributed=True)(*views[:2]),
    }
    counts = {}
    for name, call in calls.items():
        with torch.profiler.profile() as profile:
            call().backward(retain_graph=True)
        counts[name] = sum(event.name.startswith("gloo:") for event in profile.events())
    return counts


MISTAKES = {
    "dim": "ValueError",
    "dtype": "TypeError",
    "empty": "ValueError",
    "empty queue": "ValueError",
    "empty align": "ValueError",
}


def mismatch(rank: int, world: int, what: str) -> str:
    x = torch.ones(0 if "empty" in what else 3, DIM + (rank if what == "dim" else 0))
    if what == "dtype" and rank == world - 1:
        x = x.double()
    try:
        if what == "empty align":
            hsplugin.AlignLoss(gather_distributed=True)(x, x)
        else:
            queue = x.new_ones(4, DIM) if what == "empty queue" else None
            log_mean_potential(x, queue=queue, gather_distributed=True)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def on_rank(rank: int, world: int, folder: str) -> None:
    """What each process of a group does: all cases, so that the group starts only once."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    seen: dict[str, Any] = {name: run_case(case, rank, world) for name, case in CASES.items()}
    seen["training"] = run_training(rank, world, uneven=False)
    seen["training_uneven"] = run_training(rank, world, uneven=True)
    values = torch.arange(rank + 1, dtype=torch.float64, requires_grad=True)
    mean = mean_over_ranks(values)
    mean.backward()
    seen["mean"] = {"value": mean.detach(), "gradient": values.grad}
    seen["compiled"] = run_compiled(rank, world)
    seen["empty_on_one_rank"] = empty_on_one_rank(rank, world)
    seen["backward_on_one_rank"] = backward_on_one_rank(rank)
    seen["beyond_one_backward"] = beyond_one_backward(rank)
    seen["collectives"] = collectives(rank, world)
    seen["mismatch"] = {what: mismatch(rank, world, what) for what in MISTAKES}
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world}_ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    world = request.param
    torch.multiprocessing.spawn(on_rank, args=(world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-9, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_value_and_gradient_of_the_whole_batch(
    ranks: list[dict[str, Any]], name: str
) -> None:
    case, world = CASES[name], len(ranks)
    expected, expected_gradient = reference.value_and_gradient(
        lambda z: reference.log_mean_potential(
            z, case.t, case.queue_rows(), case.intra_batch, case.include_self
        ),
        case.rows(world).double(),
    )
    # DDP divides the sum over ranks by their number.
    gradient = torch.cat([seen[name]["gradient"] for seen in ranks]) / world
    scale = max(1.0, float(expected_gradient.abs().max()))
    for seen in ranks:
        assert seen[name]["value"].shape == ()
        assert abs(float(seen[name]["value"] - expected)) < (
            tolerance(case.dtype if case.dtype == torch.float64 else torch.float32)
        )
    assert (gradient.double() - expected_gradient).abs().max() < tolerance(case.dtype) * scale


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_ddp_training_steps_equal_those_of_one_process(
    ranks: list[dict[str, Any]], uneven: bool
) -> None:
    a, b, _ = two_views(len(ranks), uneven)
    expected = train(new_model(), a, b, gather=False)
    for seen in ranks:
        seen = seen["training_uneven" if uneven else "training"]
        assert (seen["values"] - expected["values"]).abs().max() < 1e-9
        for weight, expected_weight in zip(seen["weights"], expected["weights"], strict=True):
            assert (weight - expected_weight).abs().max() < 1e-9


def test_mean_over_ranks_weighs_every_value_alike(ranks: list[dict[str, Any]]) -> None:
    world = len(ranks)
    everything = torch.cat([torch.arange(rank + 1, dtype=torch.float64) for rank in range(world)])
    for seen in ranks:
        assert float(seen["mean"]["value"]) == pytest.approx(float(everything.mean()), abs=1e-12)
        gradient = seen["mean"]["gradient"] / world
        assert gradient.sub(1 / len(everything)).abs().max() < 1e-12


def test_compiles_without_a_graph_break(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        seen = seen["compiled"]
        assert abs(float(seen["eager"] - seen["compiled"])) < 1e-12
        assert (seen["eager_gradient"] - seen["compiled_gradient"]).abs().max() < 1e-12


def test_backward_waits_for_no_other_rank(ranks: list[dict[str, Any]]) -> None:
    assert all(seen["backward_on_one_rank"] for seen in ranks)


def test_a_rank_without_rows_leaves_the_others_what_they_have(
    ranks: list[dict[str, Any]],
) -> None:
    seen = [rank["empty_on_one_rank"] for rank in ranks]
    count = sum(len(rank["own"]) for rank in seen)
    a, b = (seen[0][view][:count].clone().requires_grad_() for view in "ab")
    expected = hsplugin.AlignUniformLoss().components(a, b)
    expected.loss.backward()
    alone = hsplugin.UniformLoss()(a)
    for rank in seen:
        assert (rank["values"] - torch.stack([*expected, alone])).abs().max() < 1e-12
    gradient = torch.cat([rank["gradient"] for rank in seen]) / len(ranks)
    assert (gradient - a.grad).abs().max() < 1e-12


def test_a_loss_takes_four_collectives_for_any_number_of_views(
    ranks: list[dict[str, Any]],
) -> None:
    # Counts of rows, rows of all views, sums of all potentials; sums of all distances.
    expected = {"two views": 4, "five crops": 4, "alignment": 1, "uniformity": 3}
    if len(ranks) == 1:
        expected = dict.fromkeys(expected, 0)
    for seen in ranks:
        assert seen["collectives"] == expected


@pytest.mark.parametrize(("what", "kind"), MISTAKES.items())
def test_what_is_wrong_over_all_ranks_is_said_on_all(
    ranks: list[dict[str, Any]], what: str, kind: str
) -> None:
    if len(ranks) == 1 and "empty" not in what:
        assert all(seen["mismatch"][what] == "no error" for seen in ranks)
        return
    for seen in ranks:
        assert seen["mismatch"][what].startswith(f"{kind}: ")
        assert len(ranks) == 1 or "rank" in seen["mismatch"][what]


@pytest.mark.parametrize("name", CASES)
def test_gathering_without_a_process_group_is_plain(name: str) -> None:
    assert not dist.is_initialized()
    case = CASES[name]
    arguments = {
        "queue": case.queue_rows(),
        "intra_batch": case.intra_batch,
        "include_self": case.include_self,
        "backend": case.backend,
    }
    x = case.rows(1)
    gathered = log_mean_potential(x, case.t, gather_distributed=True, **arguments)
    assert torch.equal(gathered, log_mean_potential(x, case.t, **arguments))


def test_several_ranks_refuse_second_derivatives_and_transforms(
    ranks: list[dict[str, Any]],
) -> None:
    for seen in ranks:
        for what, message in seen["beyond_one_backward"].items():
            if len(ranks) == 1:
                assert message == "nothing", what
            else:
                assert "differentiated once, by backward" in message, what
