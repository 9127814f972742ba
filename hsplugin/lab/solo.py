"""A run through solo-learn's own main_pretrain.py in an unmodified checkout.

solo-learn trains with its CIFAR recipe of the method (its augmentations, its heads, ResNet-18
unless ``--backbone`` says otherwise), on our training images, with our epochs, batch size and
AdamW. The frozen encoder is then scored like every other.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hsplugin
from hsplugin.checks import unknown
from hsplugin.errors import CommandError
from hsplugin.lab import demands, evaluate
from hsplugin.lab.data import Images, Split, load
from hsplugin.lab.encoder import Augment
from hsplugin.lab.files import read_json, read_torch, write_json, write_torch
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings
from hsplugin.provenance import cpu_seconds, machine_facts, peak_memory

Notify = Callable[[dict[str, Any]], None]
SIZE = 32
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _AsSolo(nn.Module):
    """Prepare images as solo-learn does, then apply one of its networks."""

    def __init__(self, network: nn.Module, output: str | None = None) -> None:
        super().__init__()
        self.network, self.output = network, output
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        result = self.network((resized.expand(-1, 3, -1, -1) - self.mean) / self.deviation)
        features: Tensor = result if self.output is None else result[self.output]
        return features


def check(checkout: str | None) -> Path:
    """The checkout's folder.

    Raises:
        CommandError: There is none.
    """
    if checkout is None or not (Path(checkout) / "main_pretrain.py").exists():
        raise CommandError(
            f"--framework solo needs --solo-checkout DIR with solo-learn's main_pretrain.py; "
            f"{checkout or 'nothing'} was given"
        )
    return Path(checkout).resolve()


def train(settings: RunSettings, machine: Machine, run: Run, notify: Notify) -> None:
    """Train one method of solo-learn in a process of its own, then score the frozen encoder.

    Args:
        settings: What to run; ``options`` become ``method_kwargs``.
        machine: Where to run it, with the checkout.
        run: The run's own folder.
        notify: Told of what was trained before and cannot be read.

    Raises:
        CommandError: No checkout, or no such method in it.
        RuntimeError: main_pretrain.py failed; its output is in `Run.solo_log`.
    """
    checkout = check(machine.solo_checkout)
    run = Run(run.folder.resolve())  # main_pretrain.py is started in the folder itself
    write_json(run.settings, settings.as_dict())
    images = load(settings.data, machine.data_dir, settings.train_size, settings.image_size)
    demands.check(settings, images, machine.devices)
    exported = export(images.train, run.images)
    began = time.monotonic()
    command = [sys.executable, str(checkout / "main_pretrain.py")]
    command += _overrides(settings, machine, checkout, exported, run.trained)
    model = _trained(checkout, run, notify)
    if model is None:
        done = subprocess.run(
            command,
            cwd=run.folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": str(machine.threads or 1),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        run.solo_log.write_text(done.stdout)
        model = _trained(checkout, run, notify) if done.returncode == 0 else None
        if model is None:
            said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(f"main_pretrain.py ended with {done.returncode}, saying: {said}")
    seconds = time.monotonic() - began
    _score(settings, machine, run, model, images, seconds, command)


def export(split: Split, folder: Path) -> Path:
    """Write a split as PNG files, one folder per class, the layout that solo-learn reads."""
    from PIL import Image

    for row, (pixels, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
        place = folder / f"{label:04d}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{row}.png"
        if not path.exists():
            array = pixels.permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(array).save(path.with_suffix(".partial"), format="png")
            os.replace(path.with_suffix(".partial"), path)
    return folder


def _overrides(
    settings: RunSettings, machine: Machine, checkout: Path, images: Path, trained: Path
) -> list[str]:
    import hsplugin_solo
    import yaml

    recipes = checkout / "scripts" / "pretrain" / "cifar"
    ours = Path(hsplugin_solo.__file__).parent / "conf"
    recipe = recipes / f"{settings.method}.yaml"
    where = ["--config-path", str(recipes), "--config-name", f"{settings.method}.yaml"]
    if settings.method.startswith("align_uniform"):
        recipe = ours / f"{settings.method}.yaml"
        where = ["--config-name", settings.method]
    if not recipe.exists():
        known = [path.stem for path in (*recipes.glob("*.yaml"), *ours.glob("*.yaml"))]
        raise CommandError(unknown("method of solo-learn", settings.method, known))
    optimizer = yaml.safe_load(recipe.read_text())["optimizer"]
    backbone = "resnet18" if settings.backbone == "small-conv" else settings.backbone
    return [
        *where,
        "++wandb.enabled=False",
        "++auto_resume.enabled=False",
        "++checkpoint.enabled=True",
        f"++checkpoint.dir={trained}",
        f"++seed={settings.seed}",
        f"backbone.name={backbone}",
        "data.dataset=custom",
        "data.format=image_folder",
        f"data.train_path={images}",
        "data.val_path=null",
        "data.num_workers=0",
        "optimizer.name=adamw",
        # solo-learn multiplies by batch / 256.
        f"optimizer.lr={settings.lr * 256 / settings.batch_size}",
        f"optimizer.batch_size={settings.batch_size}",
        f"optimizer.weight_decay={settings.weight_decay}",
        *(["~optimizer.kwargs"] if "kwargs" in optimizer else []),
        f"max_epochs={settings.epochs}",
        f"++precision={settings.precision}",
        f"accelerator={machine.accelerator}",
        f'devices="{",".join(map(str, range(machine.devices)))}"'
        if machine.devices > 1
        else 'devices="1"',
        *(["sync_batchnorm=False"] if machine.accelerator == "cpu" else []),
        *(f"++method_kwargs.{name}={value}" for name, value in settings.options.items()),
    ]


def _checkpoint(trained: Path) -> Path | None:
    found = sorted(trained.glob("*/*/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _trained(checkout: Path, run: Run, notify: Notify) -> nn.Module | None:
    """What was trained, if it was; what is no whole checkpoint is set aside."""
    path = _checkpoint(run.trained)
    if path is None:
        return None
    try:
        return _load(checkout, path)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        aside = run.set_aside(run.trained)
        notify({"note": f"cannot use what was trained ({reason}), so it starts anew; see {aside}"})
        return None


def _load(checkout: Path, path: Path) -> nn.Module:
    sys.path.insert(0, str(checkout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hsplugin_solo import register
        from omegaconf import OmegaConf
        from solo.methods import METHODS

        register()
    config = OmegaConf.create(read_json(path.parent / "args.json"))
    model: nn.Module = METHODS[config.method](config)
    model.load_state_dict(read_torch(path)["state_dict"])
    return model.eval()


def _score(
    settings: RunSettings,
    machine: Machine,
    run: Run,
    model: nn.Module,
    images: Images,
    seconds: float,
    command: list[str],
) -> None:
    device = torch.device("cpu")
    encoder = _AsSolo(model.backbone).eval()  # type: ignore[arg-type]
    projector = _AsSolo(model, "z").eval()
    of_backbone, pairs = (
        evaluate.positive_pairs(
            network, nn.Identity(), Augment(images), images.validation.images, device
        )
        for network in (encoder, projector)
    )
    pairs = replace(pairs, backbone_a=of_backbone.a, backbone_b=of_backbone.b)
    scorer = evaluate.Scorer(images, settings.labels_per_class)
    accuracies, answers = scorer.final(encoder, device)
    measured = {**pairs.geometry(), **accuracies}
    row = {"epoch": settings.epochs, "loss": _last_loss(run.folder), "seconds": round(seconds, 2)}
    row |= {k: measured[k] for k in ("alignment", "uniformity", "validation_knn")}
    result: dict[str, Any] = {
        **settings.as_dict(),
        "defaults": {},
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "uniformity_optimum": hsplugin.uniformity_optimum(pairs.a.shape[1]),
        **measured,
        "best_epoch": settings.epochs,
        **{f"best_{name}": value for name, value in measured.items()},
        "seconds": round(seconds, 2),
        "cpu_seconds": cpu_seconds(),
        "peak_memory_mib": peak_memory(device),
        "history": [row],
        "provenance": {**machine_facts(), "machine": asdict(machine), "solo_command": command},
    }
    labels = images.validation.labels
    write_torch(
        run.answers, {f"{which}{name}": a for which in ("", "best_") for name, a in answers.items()}
    )
    write_torch(run.pairs, pairs.content(labels))
    write_json(run.result, result)
    shutil.rmtree(run.images, ignore_errors=True)


def _last_loss(folder: Path) -> float:
    for path in sorted(folder.glob("lightning_logs/*/metrics.csv"), reverse=True):
        with path.open() as file:
            for row in reversed(list(csv.DictReader(file))):
                for name, value in row.items():
                    if name.startswith("train_") and name.endswith("loss_epoch") and value:
                        return float(value)
    return float("nan")
