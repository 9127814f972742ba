"""The paper's MoCo variant on Lightly: momentum encoder, queue of keys, 3 alignment + uniformity.

The loss is 3 L_align(alpha = 2) + L_uniform(t = 3), uniformity over the pairs of a query with the
queue and, the intra-batch form, of the queries with each other: ``AlignUniformLoss`` with a
``memory_bank_size``. The defaults are the ImageNet-100 settings of MoCo v2 (ResNet-50, batch 128,
learning rate .03, cosine, 200 epochs, queue of 65536), for which the authors report 77.66 % top-1,
and 77.54 % for the contrastive loss.

Batch norm could reveal a query's key through their common statistics, so MoCo shuffles keys over
four GPUs. Here the keys are shuffled and both encoders normalise groups of a batch separately
(--groups 4), which works the same on any number of GPUs.

    python examples/moco_align_uniform.py --data IMAGENET-100    # folders train/CLASS, val/CLASS
    python examples/moco_align_uniform.py --small                # digits, a minute on a CPU
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from hsplugin_lightly import AlignUniformLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    update_momentum,
)
from lightly.transforms import MoCoV2Transform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from pictures import pictures
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import get_model

SMALL = {
    "data": "digits",
    "backbone": "resnet18",
    "input_size": 32,
    "batch_size": 128,
    "groups": 2,
    "queue": 1024,
    "momentum": 0.95,
    "lr": 0.06,
    "epochs": 3,
    "workers": 0,
}


class Encoder(nn.Module):
    """A torchvision backbone and MoCo v2's head; batch norm treats ``groups`` parts separately."""

    def __init__(self, backbone: str, dim: int, groups: int) -> None:
        super().__init__()
        self.backbone = get_model(backbone)
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.projection_head = MoCoProjectionHead(width, width, dim)
        self.groups = groups

    def forward(self, images: Tensor) -> Tensor:
        """Projections (n, dim) of images (n, 3, height, width)."""
        parts = images.chunk(self.groups)
        return torch.cat([self.projection_head(self.backbone(part)) for part in parts])


def views(args: argparse.Namespace) -> DataLoader:
    transform = MoCoV2Transform(
        input_size=args.input_size,
        hf_prob=0.0 if args.data == "digits" else 0.5,
        gaussian_blur=0.5 if args.input_size > 64 else 0.0,
    )
    return DataLoader(
        pictures(args.data, "train", transform, root=args.root, limit=args.limit),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
    )


def train(args: argparse.Namespace, device: str) -> Encoder:
    """Train, and return the query encoder."""
    query_encoder = Encoder(args.backbone, args.dim, args.groups).to(device)
    key_encoder = copy.deepcopy(query_encoder)
    deactivate_requires_grad(key_encoder)
    criterion = AlignUniformLoss(
        align_weight=args.align_weight,
        uniform_weight=args.uniform_weight,
        alpha=args.align_alpha,
        t=args.uniform_t,
        memory_bank_size=(args.queue, args.dim),
        intra_batch=not args.no_intra_batch,
    ).to(device)
    optimizer = torch.optim.SGD(
        query_encoder.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4
    )
    loader = views(args)
    for epoch in range(args.epochs):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * epoch / args.epochs))
        sums = torch.zeros(3)
        for (view_q, view_k), *_ in loader:
            update_momentum(query_encoder, key_encoder, m=args.momentum)
            queries = query_encoder(view_q.to(device, non_blocking=True))
            with torch.no_grad():
                shuffled, order = batch_shuffle(view_k.to(device, non_blocking=True))
                keys = batch_unshuffle(key_encoder(shuffled), order)
            terms = criterion.components(queries, keys)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            sums += torch.stack(terms).detach().cpu()
        loss, align, uniform = (sums / len(loader)).tolist()
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}   alignment {align:.4f}   "
            f"uniformity {uniform:.4f}",
            flush=True,
        )
    return query_encoder


@torch.no_grad()
def features(encoder: Encoder, split: str, args: argparse.Namespace, device: str) -> list[Tensor]:
    """The backbone's features of a split, and its labels."""
    plain = transforms.Compose(
        [
            transforms.Resize(round(args.input_size * 8 / 7)),
            transforms.CenterCrop(args.input_size),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET_NORMALIZE),
        ]
    )
    images = pictures(args.data, split, plain, root=args.root, limit=args.limit)
    encoder.eval()
    batches = [
        (encoder.backbone(x.to(device)).cpu(), y)
        for x, y in DataLoader(images, args.batch_size, num_workers=args.workers)
    ]
    return [torch.cat(column) for column in zip(*batches, strict=True)]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a folder of images, cifar10, or digits")
    parser.add_argument("--root", default="datasets", help="folder for downloads")
    parser.add_argument("--limit", type=int, help="number of images of each split to use")
    parser.add_argument("--backbone", default="resnet50", help="a ResNet of torchvision")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queue", type=int, default=65536, help="number of keys in the queue")
    parser.add_argument("--momentum", type=float, default=0.999, help="of the key encoder")
    parser.add_argument(
        "--groups", type=int, default=4, help="parts that batch norm normalises separately"
    )
    parser.add_argument("--align-weight", type=float, default=3.0)
    parser.add_argument("--uniform-weight", type=float, default=1.0)
    parser.add_argument("--align-alpha", type=float, default=2.0)
    parser.add_argument("--uniform-t", type=float, default=3.0)
    parser.add_argument(
        "--no-intra-batch", action="store_true", help="uniformity against the queue alone"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the backbone's weights")
    parser.add_argument("--small", action="store_true", help=f"a trial run: {SMALL}")
    if parser.parse_known_args(argv)[0].small:
        parser.set_defaults(**SMALL)
    args = parser.parse_args(argv)
    if args.data is None:
        parser.error("--data FOLDER (or --small) is needed")
    return args


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = train(args, device)
    if args.out:
        torch.save(encoder.backbone.state_dict(), args.out)
    knn = KNeighborsClassifier(20, metric="cosine", weights="distance")
    knn.fit(*features(encoder, "train", args, device))
    accuracy = knn.score(*features(encoder, "val", args, device))
    print(f"20-NN accuracy of the backbone: {accuracy:.2%}")


if __name__ == "__main__":
    main()
