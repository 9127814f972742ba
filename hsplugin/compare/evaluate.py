"""What a frozen encoder is worth (kNN, linear probe) and how its features lie on the sphere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hsplugin
from hsplugin.compare.encoder import Augment, to_float
from hsplugin.losses import normalize

if TYPE_CHECKING:
    from hsplugin.compare.data import Images, Split

NEIGHBOURS = 20
NEIGHBOUR_TEMPERATURE = 0.1
BATCH = 1000


@dataclass(frozen=True)
class Pairs:
    """Unit projections ``(n, dim)`` of two random views of the same held-out images."""

    a: Tensor
    b: Tensor

    def alignment(self) -> float:
        """Mean squared distance of positive pairs, in [0, 4]."""
        return float(hsplugin.align_loss(self.a, self.b))

    def uniformity(self) -> float:
        """Log-mean Gaussian potential (t = 2) within a view, averaged over the two."""
        return float(hsplugin.uniform_loss(self.a) + hsplugin.uniform_loss(self.b)) / 2


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Features ``(n, d)`` of images as they are, without augmentation, on the CPU."""
    return torch.cat(
        [backbone(to_float(part.to(device))).float().cpu() for part in images.split(BATCH)]
    )


@torch.no_grad()
def positive_pairs(
    backbone: nn.Module, head: nn.Module, augment: Augment, images: Tensor, device: torch.device
) -> Pairs:
    """Unit projections of two views of each image, the same views whenever this is called."""
    # The two views are a fixed part of the measurement: neither the training nor an earlier
    # measurement may shift them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        views = [augment(part.to(device)) for part in images.split(BATCH)]
    projected = [[normalize(head(backbone(view))).cpu() for view in pair] for pair in views]
    return Pairs(torch.cat([a for a, _ in projected]), torch.cat([b for _, b in projected]))


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, query: Tensor, labels: Tensor, classes: int
) -> float:
    """Percentage of queries that Lightly's weighted kNN vote over the bank gets right."""
    from lightly.utils.benchmarking import knn_predict

    columns = F.normalize(bank, dim=1).T.contiguous()
    right = 0
    for part, target in zip(query.split(BATCH), labels.split(BATCH), strict=True):
        predicted = knn_predict(
            F.normalize(part, dim=1),
            columns,
            bank_labels,
            classes,
            knn_k=min(NEIGHBOURS, len(bank)),
            knn_t=NEIGHBOUR_TEMPERATURE,
        )
        right += int((predicted[:, 0] == target).sum())
    return 100 * right / len(labels)


def linear_accuracy(train: tuple[Tensor, Tensor], *held_out: tuple[Tensor, Tensor]) -> list[float]:
    """Percentages that logistic regression on frozen, standardised features gets right.

    Args:
        train: Features ``(n, d)`` and labels that the probe is fitted on.
        held_out: Features and labels that it is scored on.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
    probe.fit(train[0].numpy(), train[1].numpy())
    return [100 * float(probe.score(x.numpy(), y.numpy())) for x, y in held_out]


def final(backbone: nn.Module, images: Images, device: torch.device) -> dict[str, float]:
    """KNN and linear accuracy on the validation and the test split, in percent."""
    train, validation, test = (
        (features(backbone, split.images, device), split.labels)
        for split in (images.train, images.validation, images.test)
    )
    linear_validation, linear_test = linear_accuracy(train, validation, test)
    return {
        "knn": knn_accuracy(*train, *test, images.classes),
        "linear": linear_test,
        "validation_knn": knn_accuracy(*train, *validation, images.classes),
        "validation_linear": linear_validation,
    }


def subset(split: Split, limit: int) -> tuple[Tensor, Tensor]:
    """The first images and labels of a split, for measurements in the middle of a run."""
    return split.images[:limit], split.labels[:limit]
