"""Alignment and uniformity in a plain PyTorch training loop, compared with InfoNCE.

Real digits, a small network, two random views of each batch. The loop calls only
``criterion(z_a, z_b)``: switching from InfoNCE to this loss changes the one marked line.

    python examples/pytorch_plain.py                   # both losses, a minute on a CPU
    python examples/pytorch_plain.py --epochs 3        # a trial run
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

import hsplugin
from hsplugin.functional import unit_rows


class InfoNCE(nn.Module):
    """The usual contrastive loss: each row of one view identifies its partner in the other."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Mean cross entropy of two views (n, dim), in both directions."""
        logits = F.normalize(z_a) @ F.normalize(z_b).T / self.temperature
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def view(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little at random, and add noise."""
    n = len(images)
    angle, scale = 0.25 * torch.randn(n), 1 + 0.15 * torch.randn(n)
    shift = 0.15 * torch.randn(n, 2)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    affine = torch.cat([scale[:, None, None] * matrix, shift[:, :, None]], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.1 * torch.randn_like(images)


def encoder(dim: int) -> tuple[nn.Module, nn.Module]:
    """A backbone, whose features are evaluated, and a projection, whose output the loss takes."""
    layers: list[nn.Module] = []
    for channels, width in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 256))
    return backbone, nn.Sequential(nn.ReLU(), nn.Linear(256, dim))


def train(criterion: nn.Module, args: argparse.Namespace) -> None:
    """Train with a criterion of two views, then print the features' geometry and accuracy."""
    torch.manual_seed(args.seed)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    training, held_out = images[:1400], images[1400:]
    backbone, projection = encoder(args.dim)
    model = nn.Sequential(backbone, projection)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    for _ in range(args.epochs):
        for batch in training[torch.randperm(len(training))].split(args.batch_size):
            loss = criterion(model(view(batch)), model(view(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model.eval()
    with torch.no_grad():
        z_a, z_b = (unit_rows(model(view(held_out))) for _ in range(2))
        train_features, test_features = (
            F.normalize(backbone(part)).numpy() for part in (training, held_out)
        )
    knn = KNeighborsClassifier(5).fit(train_features, digits.target[:1400])
    print(
        f"alignment {hsplugin.align_loss(z_a, z_b):.3f}   "
        f"uniformity {hsplugin.uniform_loss(z_a):.3f} "
        f"(optimum {hsplugin.uniformity_optimum(args.dim):.3f})   "
        f"5-NN accuracy {knn.score(test_features, digits.target[1400:]):.1%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    print("before:  criterion = InfoNCE(temperature=0.5)")
    criterion: nn.Module = InfoNCE(temperature=0.5)
    train(criterion, args)

    print("after:   criterion = hsplugin.AlignUniformLoss.from_temperature(0.5)")
    criterion = hsplugin.AlignUniformLoss.from_temperature(0.5)  # <- the one changed line
    train(criterion, args)


if __name__ == "__main__":
    main()
