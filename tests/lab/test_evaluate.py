"""The linear probe of frozen features."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info

from hsplugin.lab.evaluate import linear_right


class Watched:
    """Labels that note how many threads numpy has when they are read."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels
        self.threads: set[int] = set()

    def numpy(self):
        self.threads = blas_threads()
        return self.labels.numpy()


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    # Another number than numpy's own, whatever the machine has.
    torch.set_num_threads(1 if blas_threads() != {1} else 2)
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def test_the_probe_uses_no_more_threads_than_torch_and_leaves_numpy_its_own(threads):
    before = blas_threads()
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    watched = Watched(labels)
    (right,) = linear_right((x, labels), (x, watched))
    assert watched.threads == {threads}
    assert blas_threads() == before
    assert right.double().mean() > 0.9


def test_a_probe_that_has_not_converged_is_scored_without_a_warning(recwarn):
    generator = torch.Generator().manual_seed(0)
    # Correlated columns and many classes: slow to fit.
    x = torch.randn(300, 1, generator=generator) + 0.05 * torch.randn(300, 100, generator=generator)
    labels = (10 * x[:, 0]).long()
    linear_right((x, labels), (x, labels))
    assert not list(recwarn)
