"""Two processes that each see a part must agree with one that sees everything."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hsplugin import metrics

FEATURES = torch.randn(50, 6, generator=torch.Generator().manual_seed(3)) + 0.4
OTHER = FEATURES + 0.2
LABELS = torch.arange(50) % 3


def collection():
    return {
        "alignment": (metrics.Alignment(), (FEATURES, OTHER)),
        "uniformity": (metrics.Uniformity(), (FEATURES, LABELS)),
        "sampled": (metrics.Uniformity(max_samples=20), (FEATURES,)),
        "wasserstein": (metrics.WassersteinUniformity(), (FEATURES,)),
        "rankme": (metrics.RankMe(), (FEATURES,)),
        "effective_rank": (metrics.EffectiveRank(), (FEATURES,)),
        "alpha_req": (metrics.AlphaReQ((2, 5)), (FEATURES,)),
        "nesum": (metrics.NESum(), (FEATURES,)),
        "stable_rank": (metrics.StableRank(), (FEATURES,)),
        "condition_number": (metrics.ConditionNumber(), (FEATURES,)),
        "feature_std": (metrics.FeatureStd(), (FEATURES,)),
        "intrinsic_dimension": (metrics.IntrinsicDimension(), (FEATURES,)),
        "cluster_learnability": (metrics.ClusterLearnability(), (FEATURES,)),
        "per_class_rank": (metrics.PerClassRank(), (FEATURES, LABELS)),
        "knn": (metrics.KNNAccuracy(k=5), (FEATURES, LABELS)),
        "linear_cka": (metrics.LinearCKA(), (FEATURES, OTHER[:, :4].square())),
        "tolerance": (metrics.Tolerance(num_classes=3), (FEATURES, LABELS)),
        "lidar": (metrics.LiDAR(), (torch.stack([FEATURES, OTHER * 1.1], dim=1),)),
    }


def measure(parts):
    values = {}
    for name, (metric, arguments) in collection().items():
        for part in parts:
            metric.update(*(argument[part] for argument in arguments))
        values[name] = metric.compute().item()
        if name in ("uniformity", "sampled"):
            values[name + " report"] = metric.report()
        # The rank's own state is back: going on must count nothing twice.
        assert int(metric.rows) == sum(part.stop - part.start for part in parts)
    return values


SPLITS = {
    "uneven": [[slice(0, 17), slice(17, 20)], [slice(20, 50)]],
    "one rank saw nothing": [[], [slice(0, 20), slice(20, 50)]],
}


def worker(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store, rank=rank, world_size=2)
    try:
        found = {split: measure(parts[rank]) for split, parts in SPLITS.items()}
        refused = metrics.RankMe()
        refused.update(FEATURES * (float("nan") if rank == 1 else 1.0))
        try:
            refused.compute()
        except ValueError as error:
            found["refusal"] = str(error)
        found["rows after refusal"] = int(refused.rows)
        try:
            metrics.Tolerance(num_classes=3).compute()
        except ValueError as error:
            found["nothing seen"] = str(error)
        results[rank] = found
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    store = f"file://{tmp_path_factory.mktemp('ranks')}/store"
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, (store, results), nprocs=2)
        return results[0], results[1]


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_agree_with_one_process(found, split):
    first, second = found[0][split], found[1][split]
    expected = measure([slice(0, 50)])
    assert first == second
    for name, value in expected.items():
        if not name.endswith("report") and name != "sampled":
            assert first[name] == pytest.approx(value, rel=1e-6), name
    report = first["uniformity report"]
    assert (report.rows, report.kept, report.per_class.keys()) == (50, 50, {0, 1, 2})
    sampled = first["sampled report"]
    assert (sampled.rows, sampled.kept) == (50, 20)
    assert abs(sampled.uniformity - expected["uniformity"]) < 5 * sampled.standard_error


def test_every_rank_refuses_alike_and_keeps_its_own_state(found):
    for of_rank in found:
        assert "50 of 100 rows" in of_rank["refusal"]
        assert of_rank["rows after refusal"] == 50
        assert "seen 0 row(s)" in of_rank["nothing seen"]
