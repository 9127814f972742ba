"""NT-Xent's gradient beside that of AlignUniformLoss, while NT-Xent trains an encoder on digits.

`AlignUniformLoss.from_temperature(tau)` is the limit of NT-Xent with many negatives. How close is
it at a real batch, as the features change? At the start of some epochs both losses see the same
views through a copy of the encoder, and their gradients are compared: the cosine and the ratio of
norms, for the projections and for all weights of encoder and head. The default weights are the
control.

    python examples/temperature_gradients.py --out gradients
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hsplugin import AlignUniformLoss, plots
from hsplugin.lab.data import Images, load
from hsplugin.lab.files import markdown_table
from hsplugin.lab.learner import Batches, Learner, Rows
from hsplugin.lab.settings import RunSettings

TEMPERATURES = [0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0]
KEYS = ["temperature", "loss", "of"]


class Gradients(pl.Callback):
    """At the start of every so many epochs, compares gradients on the first batch."""

    def __init__(self, temperature: float, every: int) -> None:
        self.temperature, self.every = temperature, every
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, learner: Learner, batch: Tensor, batch_idx: int
    ) -> None:
        """Compare on the first batch of an epoch that is due."""
        epoch = trainer.current_epoch
        last = epoch == trainer.max_epochs - 1
        if batch_idx > 0 or (epoch % self.every and not last):
            return
        with torch.random.fork_rng(devices=[]):
            a, b = learner.augment(batch)
        theirs = of_loss(learner, NTXentLoss(self.temperature), a, b)
        losses = {
            "from_temperature": AlignUniformLoss.from_temperature(self.temperature),
            "defaults": AlignUniformLoss(),
        }
        for name, loss in losses.items():
            ours = of_loss(learner, loss, a, b)
            for of, x in ours.items():
                cosine = torch.cosine_similarity(x, theirs[of], dim=0).item()
                ratio = (x.norm() / theirs[of].norm()).item()
                self.rows.append(
                    {"loss": name, "of": of, "epoch": epoch, "cosine": cosine, "ratio": ratio}
                )


def of_loss(learner: Learner, loss: nn.Module, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss for the projections and for the weights, each as one vector."""
    # A copy, as the forward pass moves the averages of batch norm.
    network = copy.deepcopy(nn.Sequential(learner.backbone, learner.head))
    projections = [network(a), network(b)]
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss(*projections), projections + weights)
    parts = {"projections": gradients[:2], "weights": gradients[2:]}
    return {of: torch.cat([x.flatten() for x in part]).double() for of, part in parts.items()}


def trained(
    images: Images, temperature: float, seed: int, args: argparse.Namespace
) -> pd.DataFrame:
    """The comparison of the gradients while one encoder is trained as `hsplugin compare` does."""
    settings = RunSettings(
        "simclr",
        seed=seed,
        epochs=args.epochs,
        batch_size=args.batch_size,
        options={"temperature": temperature},
    )
    torch.manual_seed(seed)
    learner = Learner(settings, images, gather=False)
    compared = Gradients(temperature, args.every)
    batches = Batches(len(images.pool()), settings.batch_size, seed)
    pl.Trainer(
        max_epochs=settings.epochs,
        accelerator="cpu",
        callbacks=[compared],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(learner, DataLoader(Rows(images.pool()), sampler=batches, batch_size=None))
    return pd.DataFrame(compared.rows).assign(temperature=temperature, seed=seed)


def table(rows: pd.DataFrame) -> str:
    """Cosine and ratio for each temperature, mean over epochs and seeds, with the lowest cosine."""
    lines = [[*KEYS, "cosine", "lowest cosine", "ratio of norms"]]
    for key, own in rows.groupby(KEYS, sort=False):
        numbers = own["cosine"].mean(), own["cosine"].min(), own["ratio"].mean()
        lines.append([*map(str, key), *(f"{x:.3f}" for x in numbers)])
    return markdown_table(lines)


def draw(rows: pd.DataFrame) -> Any:
    """Cosine over the epochs, a curve for each temperature; the control dashed."""
    drawing, axes = plots.figure(2, width=5.0, height=4.2)
    temperatures = sorted(rows["temperature"].unique())
    for ax, of in zip(axes, ("projections", "weights"), strict=True):
        for place, temperature in enumerate(temperatures):
            colour = _colour(place / max(1, len(temperatures) - 1))
            own = rows[(rows["temperature"] == temperature) & (rows["of"] == of)]
            for loss, style in (("from_temperature", "-"), ("defaults", ":")):
                curve = own[own["loss"] == loss].groupby("epoch")["cosine"].mean()
                named = loss == "from_temperature" and of == "projections"
                label = f"{temperature:g}" if named else None
                ax.plot(curve.index, curve, style, color=colour, lw=1.5, label=label)
        ax.axhline(1, color="0.7", lw=0.8)
        ax.set(xlabel="epoch", title=f"gradient for the {of}", ylim=(None, 1.02))
    axes[0].set_ylabel("cosine with NT-Xent's gradient")
    axes[0].legend(frameon=False, fontsize=8, title="temperature", ncols=2)
    axes[1].plot([], [], "k-", label="from_temperature")
    axes[1].plot([], [], "k:", label="default weights")
    axes[1].legend(frameon=False, fontsize=8, loc="lower left")
    return drawing


def _colour(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * share)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--every", type=int, default=3, help="epochs between comparisons")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("gradients"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torch\.utils\.data")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    images = load("digits", None)
    rows = pd.concat(
        [trained(images, tau, seed, args) for tau in args.temperatures for seed in args.seeds]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "gradients.csv", index=False, float_format="%.5f")
    draw(rows).savefig(args.out / "gradients.png", dpi=130)
    (args.out / "gradients.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
