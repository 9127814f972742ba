"""Where encoders with two-dimensional output place real images on the circle.

Four encoders of one architecture: untrained, trained with labels (cross-entropy of a linear
classifier), with Lightly's NT-Xent, and with alignment and uniformity. For held-out images: the
features with the von Mises-Fisher estimate of their density, a Gaussian estimate in the plane, the
angles of each class, and the distances of positive pairs (as figure 3 of Wang & Isola, 2020).

    python examples/features_on_circle.py --out circle.png                 # digits, minutes
    python examples/features_on_circle.py --data fashion-mnist --epochs 20 --out circle.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import hsplugin
from hsplugin import plots
from hsplugin.functional import unit_rows
from hsplugin.lab.data import DATA, Images, load
from hsplugin.lab.encoder import Augment, backbone, to_float
from hsplugin.lab.evaluate import knn_right, linear_right, percent

TRAININGS = ("random", "supervised", "contrastive", "align + uniform")


class Placed(NamedTuple):
    """Unit features (n, 2) of held-out images, and of two random views of each."""

    features: Tensor
    view_a: Tensor
    view_b: Tensor
    knn: float
    linear: float


class Supervised(nn.Module):
    """Cross-entropy of both views under a linear classifier, which is trained too."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(2, classes)

    def forward(self, z_a: Tensor, z_b: Tensor, labels: Tensor) -> Tensor:
        """Loss of two views (n, 2) with labels (n,)."""
        logits = self.classifier(unit_rows(torch.cat([z_a, z_b])))
        return nn.functional.cross_entropy(logits, labels.repeat(2))


def train(training: str, images: Images, args: argparse.Namespace) -> nn.Module:
    """Train an encoder with two outputs."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(args.seed)
    features, width = backbone("small-conv", images)
    hidden = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
    encoder = nn.Sequential(features, hidden, nn.Linear(width, 2))
    criterion: nn.Module
    if training == "random":
        return encoder
    if training == "supervised":
        criterion = Supervised(images.classes)
    elif training == "contrastive":
        criterion = NTXentLoss(temperature=args.temperature)
    else:
        criterion = hsplugin.AlignUniformLoss()
    parameters = [*encoder.parameters(), *criterion.parameters()]
    steps = args.epochs * (len(images.train) // args.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps + 1)
    augment = Augment(images)
    for _ in range(args.epochs):
        for rows in torch.randperm(len(images.train)).split(args.batch_size):
            if len(rows) < args.batch_size:
                break
            z_a, z_b = (encoder(view) for view in augment(images.train.images[rows]))
            labels = (images.train.labels[rows],) if training == "supervised" else ()
            loss = criterion(z_a, z_b, *labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder


@torch.no_grad()
def place(encoder: nn.Module, images: Images) -> Placed:
    """Features of the test split, and the accuracy that classifiers reach with them."""
    # The untrained encoder has no batch-norm statistics yet; one batch sets them, for all encoders.
    encoder.train()
    encoder(to_float(images.train.images[:1000]))
    encoder.eval()
    known = unit_rows(encoder(to_float(images.train.images)))
    features = unit_rows(encoder(to_float(images.test.images)))
    torch.manual_seed(0)
    view_a, view_b = (unit_rows(encoder(view)) for view in Augment(images)(images.test.images))
    labels = images.train.labels, images.test.labels
    return Placed(
        features,
        view_a,
        view_b,
        percent(knn_right(known, labels[0], features, labels[1], images.classes).double()),
        percent(linear_right((known, labels[0]), (features, labels[1]))[0].double()),
    )


def angle_density(features: Tensor, grid: np.ndarray, concentration: float = 50.0) -> np.ndarray:
    """Von Mises-Fisher kernel estimate of the density of angles, at the angles of the grid."""
    angles = torch.atan2(features[:, 1], features[:, 0]).double().numpy()
    kernels = np.exp(concentration * (np.cos(grid[:, None] - angles) - 1))
    return kernels.mean(1) / (2 * np.pi * np.i0(concentration) * np.exp(-concentration))


def draw(placed: dict[str, Placed], labels: Tensor, path: Path) -> None:
    """Draw one column per encoder."""
    from sklearn.neighbors import KernelDensity

    columns = len(placed)
    figure, axes_row = plots.figure(columns, width=3.2, height=12.4)
    for axes in axes_row:
        axes.remove()
    axes: Any = figure.subplots(
        4, columns, squeeze=False, gridspec_kw={"height_ratios": [1.15, 1, 0.75, 0.75]}
    )
    side = np.linspace(-1.3, 1.3, 120)
    plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    grid = np.linspace(-np.pi, np.pi, 361)
    for column, (name, one) in enumerate(placed.items()):
        top, middle, angles, distances = axes[:, column]
        plots.features_on_circle(top, one.features, labels)
        top.set_title(f"{name}\nlinear {one.linear:.0f} %, kNN {one.knn:.0f} %")
        top.set_axis_off()
        estimate = KernelDensity(bandwidth=0.08).fit(one.features.double().numpy())
        density = np.exp(estimate.score_samples(plane)).reshape(len(side), len(side))
        middle.imshow(density, origin="lower", extent=(-1.3, 1.3, -1.3, 1.3), cmap="Blues")
        middle.plot(np.cos(grid), np.sin(grid), color="0.6", lw=0.5)
        middle.set(xticks=[], yticks=[], title=f"uniformity {uniformity(one):.3f}")
        for label in labels.unique().tolist():
            of_class = angle_density(one.features[labels == label], grid)
            share = float((labels == label).float().mean())
            angles.plot(grid, share * of_class, lw=1, color=f"C{label}")
        angles.plot(grid, angle_density(one.features, grid), color="black", lw=1.5, label="all")
        angles.axhline(1 / (2 * np.pi), color="0.5", ls="--", lw=1, label="uniform")
        angles.set(xlim=(-np.pi, np.pi), ylim=(0, None), xlabel="angle", yticks=[])
        angles.set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
        plots.distance_histogram(distances, one.view_a, one.view_b)
        alignment = float(hsplugin.align_loss(one.view_a, one.view_b))
        distances.set(title=f"alignment {alignment:.3f}", yticks=[])
    axes[1, 0].set_ylabel("Gaussian estimate")
    axes[2, 0].set_ylabel("density of angles,\nby class")
    axes[2, 0].legend(frameon=False, fontsize=8)
    axes[3, 0].set_ylabel("positive pairs")
    figure.savefig(path, dpi=110)


def uniformity(one: Placed) -> float:
    """Uniformity of the held-out features, t = 2."""
    return float(hsplugin.uniform_loss(one.features))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(DATA), default="digits")
    parser.add_argument("--data-dir", help="folder with the data set's files")
    parser.add_argument("--train-size", type=int, help="number of training images to use")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--temperature", type=float, default=0.2, help="of NT-Xent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a PNG or SVG to draw")
    args = parser.parse_args()

    images = load(args.data, args.data_dir, args.train_size)
    print(f"optimum of uniformity on the circle: {hsplugin.uniformity_optimum(2):.3f}")
    print(f"{'encoder':<16} {'alignment':>9} {'uniformity':>10} {'linear %':>8} {'kNN %':>6}")
    placed = {}
    for training in TRAININGS:
        one = placed[training] = place(train(training, images, args), images)
        alignment = float(hsplugin.align_loss(one.view_a, one.view_b))
        print(
            f"{training:<16} {alignment:>9.3f} {uniformity(one):>10.3f} "
            f"{one.linear:>8.1f} {one.knn:>6.1f}",
            flush=True,
        )
    if args.out:
        draw(placed, images.test.labels, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
