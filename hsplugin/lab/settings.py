"""What identifies a run (`RunSettings`) and where runs are computed (`Machine`).

Both are tables of `hsplugin.flags`: flags, config keys, defaults, bounds and help of the commands
follow from their fields, so a new setting is one field here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hsplugin.flags import check, setting
from hsplugin.lab.data import DATA

WHAT, BUDGET, WHERE, CLUSTER = "data", "budget", "machine", "SLURM cluster"
BY_DATA = "what suits the data set"


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides the numbers of one run, and nothing else.

    Two runs with equal settings on one machine give equal results, so the settings name the
    run's folder and a finished folder is never computed again. The help text of each field says
    what it is; ``options`` are the method's own hyper-parameters that differ from its defaults.
    A changed default would rename the folders of earlier results.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of its bounds.
    """

    method: str
    seed: int = setting(
        0, WHAT, "seed of initial weights, order of images, augmentation and --random"
    )
    data: str = setting("digits", WHAT, f"one of {', '.join(DATA)}, or a folder of images")
    train_size: int | None = setting(
        None, WHAT, "number of training images, a fixed subset", least=2, unset="all"
    )
    image_size: int | None = setting(
        None, WHAT, "side of a folder's images in pixels", least=2, most=1024, unset="64"
    )
    epochs: int = setting(60, BUDGET, "passes over the training images", least=1, unset=BY_DATA)
    batch_size: int = setting(
        256, BUDGET, "images per step over all devices", least=2, unset=BY_DATA
    )
    lr: float = setting(2e-3, BUDGET, "peak learning rate of AdamW")
    weight_decay: float = setting(1e-4, BUDGET, "decoupled weight decay of AdamW", least=0)
    dim: int = setting(64, BUDGET, "dimension of the projection", least=2)
    backbone: str = setting("small-conv", BUDGET, "small-conv, or a model of torchvision or timm")
    validations: int = setting(20, BUDGET, "about how many times a run is measured", least=1)
    precision: str = setting(
        "32-true",
        BUDGET,
        "precision of the networks while they train, under Lightning's name; auto is that of the "
        "runs in --out, else bf16-mixed where the hardware is faster in bfloat16",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        unset="auto",
    )
    compile: bool = setting(
        False,
        BUDGET,
        "train through torch.compile; changes the last bits, and takes up to a minute at the start",
    )
    framework: str = setting(
        "lightly",
        WHAT,
        "framework of the methods; solo runs main_pretrain.py of --solo-checkout",
        choices=("lightly", "solo"),
    )
    labels_per_class: int | None = setting(
        None,
        WHAT,
        "labels for kNN and linear probe, averaged over draws; 0 means all",
        least=0,
        unset=BY_DATA,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(type(self), vars(self))
        object.__setattr__(self, "labels_per_class", self.labels_per_class or None)

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
    """Where and how runs are computed, which never changes what is computed.

    The help text of each field says what it is; ``slurm`` are further parameters of the jobs,
    and ``command`` is the command line that asked for the runs, for the record.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of its bounds.
    """

    data_dir: str | None = setting(None, WHAT, "folder with the data set's files")
    solo_checkout: str | None = setting(None, WHAT, "folder of an unmodified solo-learn checkout")
    jobs: int = setting(
        1,
        WHERE,
        "runs at a time; on GPUs, at a time on each; SLURM has --array-parallelism",
        least=1,
        most=1024,
        unset="1 on GPUs, else one per core, up to 4",
    )
    threads: int | None = setting(
        None,
        WHERE,
        "CPU threads of one run",
        least=1,
        unset="the cores divided by the jobs; on SLURM, what it gives a task",
    )
    accelerator: str = setting(
        "auto",
        WHERE,
        "accelerator flag of Lightning",
        choices=("auto", "cpu", "gpu", "cuda", "mps"),
    )
    devices: int = setting(
        1, WHERE, "devices of one run on each of its nodes; more than one means DDP", least=1
    )
    gpus_per_run: int | None = setting(
        None,
        WHERE,
        "short for --accelerator gpu --devices N, or --accelerator cpu where N is 0",
        least=0,
        unset="with --cluster slurm 1",
    )
    logger: str | None = setting(
        None,
        WHERE,
        "tracker that the runs log to, through Lightning; tensorboard and csv below each run's "
        "folder, wandb and mlflow in logs below --out unless the environment says otherwise",
        choices=("tensorboard", "wandb", "mlflow", "csv"),
    )
    cluster: str = setting(
        "local", CLUSTER, "local, or slurm for one job a run", choices=("local", "slurm")
    )
    partition: str | None = setting(None, CLUSTER, "partition of the jobs", unset="SLURM's default")
    timeout: int = setting(
        240, CLUSTER, "minutes until a job is queued again, to go on from its checkpoint", least=2
    )
    array_parallelism: int = setting(
        64, CLUSTER, "jobs at a time of an array, which has up to 1000", least=1
    )
    nodes: int = setting(1, CLUSTER, "nodes of one run", least=1)
    job_folder: str | None = setting(
        None,
        CLUSTER,
        "scripts, pickles and logs of the jobs; a folder that all nodes see and only you write to",
        unset="~/.hsplugin/jobs",
    )
    slurm: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(type(self), vars(self))

    @property
    def ranks(self) -> int:
        """Processes of one run, on all its nodes together."""
        return self.nodes * self.devices
