"""SimCLR with Lightly, trained with this loss: one line differs, and it is marked.

python examples/lightly_simclr.py                  # ResNet-18 on CIFAR-10, batch 256
python examples/lightly_simclr.py --small          # digits, under a minute on a CPU
python examples/lightly_simclr.py --loss ntxent    # the original line
"""

from __future__ import annotations

import argparse

import torch
from hsplugin_lightly import AlignUniformLoss
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from pictures import pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import resnet18

SMALL = {"data": "digits", "epochs": 2, "batch_size": 128, "limit": 512, "workers": 0}


class SimCLR(nn.Module):
    """A backbone and a projection head, whose output the loss takes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, images: Tensor) -> Tensor:
        """Projections (n, 128) of images (n, 3, height, width)."""
        return self.projection_head(self.backbone(images))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="cifar10, digits, or a folder of images")
    parser.add_argument("--root", default="datasets", help="folder for downloads")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.06)
    parser.add_argument("--loss", choices=["align_uniform", "ntxent"], default="align_uniform")
    parser.add_argument("--limit", type=int, help="number of images to use")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--small", action="store_true", help=f"a trial run: {SMALL}")
    if parser.parse_known_args()[0].small:
        parser.set_defaults(**SMALL)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mirrored = 0.0 if args.data == "digits" else 0.5
    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0, hf_prob=mirrored)
    loader = DataLoader(
        pictures(args.data, "train", transform, root=args.root, limit=args.limit),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
    )
    model = SimCLR().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)

    if args.loss == "ntxent":
        criterion: nn.Module = NTXentLoss(temperature=0.5)
    else:
        # The one changed line; it was: criterion = NTXentLoss(temperature=0.5)
        criterion = AlignUniformLoss.from_temperature(0.5)

    for epoch in range(args.epochs):
        total = 0.0
        for (view0, view1), *_ in loader:
            z0, z1 = model(view0.to(device)), model(view1.to(device))
            loss = criterion(z0, z1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.4f}", flush=True)

    from sklearn.neighbors import KNeighborsClassifier

    @torch.no_grad()
    def features(split: str) -> tuple[Tensor, Tensor]:
        model.eval()
        plain = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(**IMAGENET_NORMALIZE)]
        )
        images = pictures(args.data, split, plain, root=args.root, limit=args.limit)
        batches = [(model.backbone(x.to(device)).cpu(), y) for x, y in DataLoader(images, 256)]
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    knn = KNeighborsClassifier(5, metric="cosine").fit(*features("train"))
    accuracy = knn.score(*features("val"))
    print(f"5-NN accuracy of the backbone: {accuracy:.1%}")


if __name__ == "__main__":
    main()
