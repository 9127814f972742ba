"""kNN and linear-probe accuracy of a frozen encoder, and the geometry of its features."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hsplugin
from hsplugin.functional import unit_rows
from hsplugin.lab.data import Images
from hsplugin.lab.encoder import Augment, to_float

NEIGHBOURS = 20
NEIGHBOUR_TEMPERATURE = 0.1
BATCH = 1000
DRAWS = 10


@dataclass(frozen=True)
class Pairs:
    """Two random views of the same held-out images: projections and backbone features.

    Attributes:
        a: Unit projections ``(n, dim)`` of the first views.
        b: Those of the second views.
        backbone_a: Unit features ``(n, features)`` of the first views, before the head.
        backbone_b: Those of the second views.
    """

    a: Tensor
    b: Tensor
    backbone_a: Tensor
    backbone_b: Tensor

    def alignment(self) -> float:
        """Mean squared distance of positive pairs, in [0, 4]."""
        return float(hsplugin.align_loss(self.a, self.b))

    def uniformity(self) -> float:
        """Log-mean Gaussian potential (t = 2) within a view, averaged over the two."""
        return float(hsplugin.uniform_loss(self.a) + hsplugin.uniform_loss(self.b)) / 2

    def geometry(self) -> dict[str, float]:
        """Both by name."""
        return {"alignment": self.alignment(), "uniformity": self.uniformity()}

    def content(self, labels: Tensor) -> dict[str, Tensor]:
        """What a run's file of pairs holds: all features in half precision, and the labels."""
        return {**{name: x.half() for name, x in vars(self).items()}, "labels": labels}


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Features ``(n, d)`` of images without augmentation, on the CPU."""
    return torch.cat(
        [backbone(to_float(part.to(device))).float().cpu() for part in images.split(BATCH)]
    )


@torch.no_grad()
def positive_pairs(
    backbone: nn.Module, head: nn.Module, augment: Augment, images: Tensor, device: torch.device
) -> Pairs:
    """Unit features and projections of two views of each image; the same views in every call."""
    # The views are part of the measurement's definition: neither training nor an earlier
    # measurement may change them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        views = [augment(part.to(device)) for part in images.split(BATCH)]
    parts: list[list[Tensor]] = [[], [], [], []]
    for pair in views:
        encoded = [backbone(view) for view in pair]
        for part, x in zip(parts, [*map(head, encoded), *encoded], strict=True):
            part.append(unit_rows(x).cpu())
    return Pairs(*map(torch.cat, parts))


def knn_right(
    bank: Tensor, bank_labels: Tensor, query: Tensor, labels: Tensor, classes: int
) -> Tensor:
    """Which queries ``(n,)`` Lightly's weighted kNN vote over the bank gets right.

    The vote is among 20 neighbours, or among half as many as a class has in a smaller bank.
    """
    from lightly.utils.benchmarking import knn_predict

    columns = F.normalize(bank, dim=1).T.contiguous()
    neighbours = max(1, min(NEIGHBOURS, len(bank) // (2 * classes)))
    right = []
    for part, target in zip(query.split(BATCH), labels.split(BATCH), strict=True):
        predicted = knn_predict(
            F.normalize(part, dim=1),
            columns,
            bank_labels,
            classes,
            knn_k=neighbours,
            knn_t=NEIGHBOUR_TEMPERATURE,
        )
        right.append(predicted[:, 0] == target)
    return torch.cat(right)


def linear_right(train: tuple[Tensor, Tensor], *held_out: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Which rows logistic regression on frozen, standardised features gets right.

    It is fitted in at most 200 steps of L-BFGS, converged or not.

    Args:
        train: Features ``(n, d)`` and labels that the probe is fitted on.
        held_out: Features and labels that it is scored on.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
    # numpy takes all cores otherwise, and its threads wait for each other busily: where other runs
    # have those cores, the fit took 15 times as long.
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
        # The steps are a budget, the same for every method.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train[0].numpy(), train[1].numpy())
        return [torch.from_numpy(probe.predict(x.numpy()) == y.numpy()) for x, y in held_out]


def labelled(labels: Tensor, per_class: int | None) -> list[Tensor]:
    """Rows whose labels the probes may see: all of them, or several draws of a few per class.

    The draws depend only on the labels, so every method is scored on the same ones.
    """
    if per_class is None:
        return [torch.arange(len(labels))]
    draws = []
    for draw in range(DRAWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
        draws.append(
            torch.cat([order[labels[order] == c][:per_class] for c in labels.unique().tolist()])
        )
    return draws


@dataclass(frozen=True)
class Scorer:
    """Accuracy of frozen features on one data set, given all labels or a few per class."""

    images: Images
    labels_per_class: int | None = None

    def knn(self, bank: Tensor, bank_labels: Tensor, query: Tensor, labels: Tensor) -> float:
        """Accuracy of the kNN vote in percent, averaged over the draws of labels."""
        return percent(self._knn_answers(bank, bank_labels, query, labels))

    def _knn_answers(
        self, bank: Tensor, bank_labels: Tensor, query: Tensor, labels: Tensor
    ) -> Tensor:
        return _share(
            knn_right(bank[rows], bank_labels[rows], query, labels, self.images.classes)
            for rows in labelled(bank_labels, self.labels_per_class)
        )

    def final(
        self, backbone: nn.Module, device: torch.device
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Score kNN and linear probe on the validation and the test split.

        Returns:
            ``(measures, answers)``: accuracies in percent, and on the test split their standard
            errors by its size; and for each test image the share of the draws of labels that
            classify it rightly, ``(n,)`` by ``"knn"`` and ``"linear"``.
        """
        train, validation, test = (
            (features(backbone, split.images, device), split.labels)
            for split in (self.images.train, self.images.validation, self.images.test)
        )
        linear = [
            linear_right((train[0][rows], train[1][rows]), validation, test)
            for rows in labelled(train[1], self.labels_per_class)
        ]
        answers = {
            "knn": self._knn_answers(*train, *test),
            "linear": _share(on_test for _, on_test in linear),
        }
        return {
            **{name: percent(right) for name, right in answers.items()},
            **{f"{name}_se": standard_error(right) for name, right in answers.items()},
            "validation_knn": self.knn(*train, *validation),
            "validation_linear": percent(_share(on_validation for on_validation, _ in linear)),
        }, answers


def percent(right: Tensor) -> float:
    """Accuracy in percent of answers ``(n,)``, each the share in [0, 1] that was right."""
    return 100 * float(right.mean())


def standard_error(right: Tensor) -> float:
    """Standard error of `percent` by the number of images: sqrt(p (1 - p) / n) for one draw."""
    return 100 * float(right.std(correction=0)) / len(right) ** 0.5


def _share(draws: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(draws)).double().mean(0)
