"""What identifies a run (`RunSettings`) and where it happens (`Machine`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run, and nothing else.

    Two runs with equal settings on one machine give equal results, so the settings name the
    run's folder and a finished folder is never computed again.

    Attributes:
        method: Name in `hsplugin.compare.methods.METHODS`.
        seed: Seed of initial weights, order of images and augmentation. The splits of a data
            set never depend on it.
        data: Name in `hsplugin.compare.data.DATA`, or a folder of images.
        train_size: Number of training images, a fixed subset; None takes all.
        image_size: Side of the images of a folder in pixels; None keeps the data set's own.
        epochs: Passes over the training images.
        batch_size: Images per step over all devices, each giving two views.
        lr: Peak learning rate of AdamW (linear warm-up, then cosine to zero).
        weight_decay: Decoupled weight decay.
        dim: Dimension of the projection.
        backbone: ``"small-conv"`` or a torchvision or timm model name.
        validations: About how many times a run is measured on the validation split.
        precision: Lightning's precision flag.
        framework: ``"lightly"`` or ``"solo"``.
        labels_per_class: Labelled training images per class for kNN and linear probe, averaged
            over fixed draws; None uses all labels.
        options: The method's own hyper-parameters that differ from its defaults.
    """

    method: str
    seed: int = 0
    data: str = "digits"
    train_size: int | None = None
    image_size: int | None = None
    epochs: int = 60
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-4
    dim: int = 64
    backbone: str = "small-conv"
    validations: int = 20
    precision: str = "32-true"
    framework: str = "lightly"
    labels_per_class: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name: the method, the seed, and a digest of all that is not default."""
        given = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("method", "seed") and getattr(self, f.name) != f.default
        }
        text = json.dumps(given, sort_keys=True, default=str)
        return f"{self.method}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values; ``RunSettings(**settings.as_dict())`` is the same run."""
        return asdict(self)

    def shared(self) -> dict[str, Any]:
        """Settings that all runs of one comparison have in common."""
        return {k: v for k, v in asdict(self).items() if k not in ("method", "seed", "options")}


@dataclass(frozen=True)
class Machine:
    """Where and how a run is computed, with no bearing on what is computed.

    Attributes:
        data_dir: Folder with the data set's files, when they are not to be downloaded.
        threads: Threads of one run on the CPU; None leaves torch's choice divided by the jobs.
        accelerator: Lightning's accelerator flag.
        devices: Devices of one run; more than one means DDP.
        solo_checkout: The solo-learn checkout for ``framework="solo"``.
        command: The command line that asked for the run, for the record.
    """

    data_dir: str | None = None
    threads: int | None = None
    accelerator: str = "auto"
    devices: int = 1
    solo_checkout: str | None = None
    command: tuple[str, ...] = ()
