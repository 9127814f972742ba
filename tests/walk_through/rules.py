"""How the walk-through runs each kind of command that the documentation shows.

The first rule whose pattern is found in a command decides. A command that none finds fails the
test beside this file: shorten it here, or say why it cannot be run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SOLO_LEARN = "https://github.com/vturrisi/solo-learn"


def lists_github() -> bool:
    """Whether solo-learn can be cloned from here, or from where Git is told that it lies."""
    command = ["git", "ls-remote", "--quiet", SOLO_LEARN, "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# What a command may need of a machine: what to print where it is missing, and how to find out.
NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "downloads": ("installs PyTorch once more: --downloads", lambda: False),
    "github": ("GitHub cannot be reached", lists_github),
    "gpu": ("no GPU", lambda: shutil.which("nvidia-smi") is not None),
    "slurm": ("no SLURM", lambda: shutil.which("sbatch") is not None),
}


@dataclass(frozen=True)
class Rule:
    """What is done with the commands in which a pattern is found."""

    pattern: str
    flags: Mapping[str, str] = field(default_factory=dict)  # set, or taken away where ""
    defaults: Mapping[str, str] = field(default_factory=dict)  # set where they are not given
    replace: Mapping[str, str] = field(default_factory=dict)  # patterns and their replacements
    add: str = ""  # put behind what the pattern finds
    needs: str = ""
    in_solo_learn: bool = False  # run in the checkout of solo-learn
    never: str = ""  # why it cannot be run at all

    def shortened(self, command: str) -> str:
        """The command with a small budget."""
        for pattern, replacement in self.replace.items():
            command = re.sub(pattern, replacement, command)
        added = self.add
        for flag, value in {**self.defaults, **self.flags}.items():
            given = re.compile(rf"(?<!\S){flag}(?![\w-])(?:[ =](?!-)[^\s&|;#<>]+)*")
            if not given.search(command):
                added += f" {flag} {value}" if value else ""
            elif flag in self.flags:
                command = given.sub(f"{flag} {value}" if value else "", command)
        end = re.search(self.pattern, command)
        assert end, f"a replacement may not change what {self.pattern} finds: {command}"
        return command[: end.end()] + added + command[end.end() :]


# CLONE is the clone that is walked through, SOLO the checkout of solo-learn, SMALL the folder with
# the files of inputs.py, which lie in the folder of every page too.
BUDGET = {
    "--data-dir": "",
    "--train-size": "120",
    "--epochs": "1",
    "--batch-size": "40",
    "--labels-per-class": "3",
}
ONE_CPU = {"--jobs": "1", "--threads": "1", "--accelerator": "cpu", "--gpus-per-run": ""}
DIGITS = {"--data": "digits"}
SEEDS = {"--seeds": "0", "--backbone": ""}
CLUSTER = {"--gpus-per-run": "0", "--partition": "", "--slurm": "", "--array-parallelism": "2"}
METHODS = {"--methods": "align_uniform simclr"}
GRID = {"--grid": "$SMALL/two.yaml"}
RECIPE = (
    " data.dataset=custom data.format=image_folder data.num_workers=0 optimizer.batch_size=16"
    " data.train_path=$SMALL/photos/train data.val_path=$SMALL/photos/val max_epochs=1"
    " accelerator=cpu 'devices=\"1\"' sync_batchnorm=False precision=32 wandb.enabled=False"
)

RULES = [
    # The set-up of a machine.
    Rule(
        r"\btox run -e compare\b",
        needs="downloads",
        add=" -- --epochs 1 --train-size 120 --labels-per-class 3",
    ),
    Rule(r"\btox run -e tests\b( -- -m \"\")?", needs="downloads", add=" -- tests/test_losses.py"),
    Rule(r"\btox run\b", needs="downloads"),
    Rule(r"\bpython3? -m venv\b", needs="downloads"),
    Rule(
        r"\bpip install\b",
        replace={
            r"'?\bhsplugin(\[[\w,-]+\])?( ?@ ?\S+?)?'?(?=\s|$)": r"'CLONE\1'",
            "PATH_TO_HSPLUGIN": "CLONE",
        },
    ),
    Rule(r"^git clone https://github\.com/hsplugin/hsplugin\b", replace={r"\s*$": ""}),
    Rule(r"^git clone https://github\.com/", needs="github"),
    Rule(r"^git (-C \S+ )?checkout\b", needs="github"),
    Rule(r"^(cd|export|source|\.|mkdir|ls|cat) "),
    Rule(r"^pre-commit\b", needs="downloads"),
    Rule(r"^HSPLUGIN_REWRITE_TABLE=1 pytest\b", never="trains every method: an hour"),
    Rule(r"^pytest\b", never="tox runs the tests"),
    # The commands of hsplugin.
    Rule(r"^hsplugin (--version|--help)"),
    Rule(r"^hsplugin measure\b"),
    Rule(
        r"^hsplugin bench\b",
        flags={"--sizes": "64x16", "--seconds": "0.05"},
        defaults={"--contenders": "pdist hsplugin"},  # KeOps and torch.compile build for minutes
        add=" --no-memory",
    ),
    Rule(
        r"^hsplugin compare\b(?=.*--cluster slurm)",
        flags={**BUDGET, **SEEDS, **CLUSTER, **DIGITS},
        defaults=METHODS,
        needs="slurm",
    ),
    Rule(
        r"^hsplugin sweep\b(?=.*--cluster slurm)",
        flags={**BUDGET, **CLUSTER, **DIGITS},
        defaults=GRID,
        needs="slurm",
    ),
    Rule(
        r"^hsplugin compare\b(?=.*--framework solo)",
        flags={**BUDGET, **SEEDS, **ONE_CPU, **DIGITS, "--solo-checkout": "$SOLO"},
        needs="github",
    ),
    Rule(
        r"^hsplugin compare\b(?=.*--data photos)",
        flags={**BUDGET, **SEEDS, **ONE_CPU, "--image-size": "32", "--train-size": ""},
        defaults=METHODS,
    ),
    Rule(
        r"^hsplugin compare\b",
        flags={**BUDGET, **SEEDS, **ONE_CPU, **DIGITS},
        defaults=METHODS,
    ),
    Rule(
        r"^hsplugin sweep\b(?=.*--random)", flags={**BUDGET, **ONE_CPU, **DIGITS, "--random": "2"}
    ),
    Rule(r"^hsplugin sweep\b", flags={**BUDGET, **ONE_CPU, **DIGITS}, defaults=GRID),
    Rule(r"^hsplugin run\b", in_solo_learn=True, needs="github", add=" --help #"),
    # Scripts of the frameworks.
    Rule(
        r"\bpython main_pretrain\.py .*?(?=\s+#|$)", in_solo_learn=True, needs="github", add=RECIPE
    ),
    Rule(r"\bpython simclr\.py\b"),
    Rule(r"^python -c "),
    # The examples.
    Rule(r"\bpython examples/gpu_check\.py\b", needs="gpu", add=" --no-tests --seconds 0.05"),
    Rule(
        r"\bpython examples/(lightly_simclr|moco_align_uniform|stl10)\.py\b",
        flags={"--limit": "128", "--epochs": "1", "--batch-size": "32"},
        add=" --small",
    ),
    Rule(
        r"\bpython examples/(pytorch_plain|sentence_training|spt_digits)\.py\b",
        flags={"--epochs": "1"},
    ),
    Rule(
        r"\bpython examples/features_on_circle\.py\b", flags={"--epochs": "1", "--train-size": "96"}
    ),
    Rule(r"\bpython examples/lab_throughput\.py\b", flags={"--rounds": "1", "--batch-size": "32"}),
    Rule(r"\bpython examples/monitor_overhead\.py\b", flags={"--pairs": "2", "--batch-size": "8"}),
    Rule(r"\bpython examples/interval_coverage\.py\b", flags={"--simulations": "2"}),
    Rule(r"\bpython examples/contrastive_limit\.py\b", flags={"--pairs": "16384"}),
    Rule(r"\bpython examples/(uniform_points_on_sphere|sentence_embeddings)\.py\b"),
    Rule(
        r"\bpython examples/watch_any_method\.py lightly/\S+",
        needs="github",
        flags={"--random-images": "64", "--epochs": "1", "--batch-size": "16"},
    ),
    Rule(r"\bbash examples/solo_learn\.sh\b", needs="github", replace={"IMAGES": "$SMALL/photos"}),
]


def rule_for(command: str) -> Rule | None:
    """The first rule whose pattern is found in a command."""
    return next((rule for rule in RULES if re.search(rule.pattern, command)), None)
