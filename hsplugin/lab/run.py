"""The folder of one run and every file in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hsplugin.checks import check_number
from hsplugin.errors import CommandError
from hsplugin.lab.files import machine_error, read_json, read_torch
from hsplugin.lab.methods import recipe
from hsplugin.lab.settings import Machine, RunSettings
from hsplugin.provenance import describe

T = TypeVar("T")

# What the event of an epoch holds.
NEWS = ("epoch", "epochs", "loss", "knn", "seconds")
# The accuracies on the test split, each with the answers that it counts.
ACCURACIES = ("knn", "linear", "best_knn", "best_linear")
# Measures that every result has.
MEASURES = (
    *("alignment", "uniformity", "uniformity_optimum", "validation_knn", "validation_linear"),
    *(*ACCURACIES, "parameters", "seconds"),
)
# Measures that results of earlier versions lack.
LATER_MEASURES = (
    *("knn_se", "linear_se", "best_knn_se", "best_linear_se"),
    "images_per_second",
)


class Run:
    """One run's folder; the only place that knows the names of its files.

    Attributes:
        folder: The folder itself; its name is the run's.
        settings: The `RunSettings`, written when the run starts.
        job: Settings and machine, for the further processes of a DDP run.
        checkpoint: What an unfinished run resumes from.
        partial_checkpoint: The next checkpoint while it is being written.
        word: What the first rank of a job tells the others.
        news: The latest event of the run, for a command on another machine.
        history: One row per measured epoch.
        pairs: Unit projections and backbone features of two views of each validation image, with
            labels.
        answers: Share of right answers for each test image, of every accuracy.
        encoder: Weights of the last and the best epoch.
        result: Settings and measures; its existence marks the run as finished.
        log: What TensorBoard or CSV logs, and the picture of the end.
        log_state: How far the log of a tracker came.
        error_log: Traceback of a run that failed.
        images: PNG files for solo-learn.
        trained: What solo-learn trained.
        solo_log: What solo-learn printed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "settings.json"
        self.job = folder / "job.json"
        self.checkpoint = folder / "last.ckpt"
        self.partial_checkpoint = folder / "last.ckpt.partial"
        self.word = folder / "word.json"
        self.news = folder / "news.json"
        self.history = folder / "history.csv"
        self.pairs = folder / "pairs.pt"
        self.answers = folder / "answers.pt"
        self.encoder = folder / "encoder.pt"
        self.result = folder / "result.json"
        self.log = folder / "log"
        self.log_state = folder / "log.json"
        self.error_log = folder / "error.log"
        self.images = folder / "images"
        self.trained = folder / "trained"
        self.solo_log = folder / "solo.log"

    @classmethod
    def of(cls, settings: RunSettings, out: Path) -> Run:
        """The run of these settings below ``out``; different settings never share a folder."""
        return cls.of_name(settings.name, out)

    @classmethod
    def of_name(cls, name: str, out: Path) -> Run:
        """The run of this name below ``out``."""
        return cls(out / "runs" / name)

    @classmethod
    def all_in(cls, out: Path) -> list[Run]:
        """Every run below ``out`` that was started, sorted by name."""
        return [cls(path.parent) for path in sorted((out / "runs").glob("*/settings.json"))]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return self.result.exists() and self.settings.exists()

    def read_settings(self) -> dict[str, Any]:
        """The settings as a mapping, those that an earlier version did not know at default.

        Raises:
            CommandError: The file is damaged.
        """
        defaults = {f.name: f.default for f in fields(RunSettings) if f.default is not MISSING}
        return self._read(self.settings, lambda path: {**defaults, **_settings(read_json(path))})

    def read_job(self) -> tuple[RunSettings, Machine]:
        """What the run does and where.

        Raises:
            CommandError: The file is damaged.
        """

        def read(path: Path) -> tuple[RunSettings, Machine]:
            job = read_json(path)
            machine = {**job["machine"], "command": tuple(job["machine"].get("command", ()))}
            return RunSettings(**job["settings"]), Machine(**machine)

        return self._read(self.job, read)

    def read_news(self) -> dict[str, Any]:
        """The latest event of a run on another machine; empty before the first."""
        try:
            news = read_json(self.news)
            for name in ("failed", "fatal", "note"):
                if name in news:
                    return {name: str(news[name])}
            numbers = {name: news[name] for name in NEWS}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return numbers if all(isinstance(n, int | float) for n in numbers.values()) else {}

    def read_result(self) -> dict[str, Any]:
        """Settings, measures, ``history`` and ``provenance`` of a finished run.

        ``options`` are those that were given, as in the settings; ``defaults`` are the method's
        own defaults for the others. Measures that an earlier version did not take are None.

        Raises:
            CommandError: The file, or that of the settings, is damaged.
        """
        settings = self.read_settings()

        def read(path: Path) -> dict[str, Any]:
            result = {**dict.fromkeys(LATER_MEASURES), **settings, **read_json(path)}
            given = settings["options"]
            if "defaults" not in result:
                # Earlier versions wrote given options, defaults and shared settings together.
                used, lightly = result["options"], result["framework"] == "lightly"
                known = recipe(result["method"]).defaults if lightly else {}
                result["options"] = given
                result["defaults"] = {
                    k: v for k, v in used.items() if k in known and k not in given
                }
            if other := [name for name, value in settings.items() if result[name] != value]:
                raise ValueError(f"its {other[0]} is not that of {self.settings.name}")
            _check_result(result)
            return result

        return self._read(self.result, read)

    def read_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit projections of two views ``(n, d)``, and labels ``(n,)``, of validation images.

        Raises:
            CommandError: The file is damaged or missing.
        """
        return self._read(self.pairs, _pairs)

    def read_backbone_pairs(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The same of the backbone's unit features; None where an earlier version kept none.

        Raises:
            CommandError: The file is damaged or missing.
        """
        return self._read(self.pairs, _backbone_pairs)

    def read_answers(self) -> dict[str, Tensor]:
        """For each accuracy, the share of right answers to each test image, ``(n,)``.

        Earlier versions kept none: then it is empty.

        Raises:
            CommandError: The file is damaged.
        """
        return self._read(self.answers, _answers) if self.answers.exists() else {}

    def set_aside(self, path: Path) -> Path:
        """Rename a file or folder of the run that is damaged, and give its new path."""
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        return path.replace(aside)

    def _read(self, path: Path, read: Callable[[Path], T]) -> T:
        try:
            return read(path)
        except FileNotFoundError:
            reason = "is missing"
        except KeyError as error:
            reason = f"is damaged (it lacks {error})"
        except OSError as error:
            raise CommandError(machine_error(error, path)) from None
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = f"is damaged ({' '.join(str(error).split())})"
        raise CommandError(f"{path} {reason}; remove the folder {self.folder} and rerun")


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(RunSettings)}
    RunSettings(**{k: v for k, v in content.items() if k in known})
    if not isinstance(content["method"], str) or not isinstance(content["options"], dict):
        raise TypeError("method must be a string and options a mapping")
    str(content).encode()  # a lone surrogate could not be written again
    return content


def _check_result(result: Mapping[str, Any]) -> None:
    for name in MEASURES:
        check_number(name, result[name])
    for name in LATER_MEASURES:
        if result[name] is not None:
            check_number(name, result[name])
    if result["framework"] == "lightly":
        for name, value in {**result["defaults"], **result["options"]}.items():
            check_number(name, value)
    for row in result["history"]:
        check_number("epoch", row["epoch"])
        if odd := [k for k, v in row.items() if not isinstance(v, int | float | None)]:
            raise TypeError(f"{odd[0]} in the history is no number")
    for name in ("cpu_seconds", "peak_memory_mib", "best_epoch"):
        if not isinstance(result.get(name), int | float | None):
            raise TypeError(f"{name} is no number")
    str(dict(result)).encode()  # a lone surrogate could not be written again
    describe(result["provenance"], ())


def _backbone_pairs(path: Path) -> tuple[Tensor, Tensor, Tensor] | None:
    content = read_torch(path)
    return _paired(content, "backbone_") if "backbone_a" in content else None


def _pairs(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    return _paired(read_torch(path), "")


def _paired(pairs: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    a, b, labels = _dense(pairs[f"{prefix}a"]), _dense(pairs[f"{prefix}b"]), pairs["labels"]
    if not (a.ndim == 2 and a.shape == b.shape and a.shape[:1] == labels.shape and a.numel()):
        raise ValueError(f"shapes {a.shape}, {b.shape} and {labels.shape}")
    if labels.dtype != torch.int64 or labels.min() < 0:
        raise ValueError("labels must be integers from 0 on")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("NaN or infinite features")
    return a.float(), b.float(), labels


def _dense(x: Tensor) -> Tensor:
    """A tensor of ordinary numbers, of which torch has several other kinds.

    Raises:
        TypeError: It is none.
    """
    if x.layout != torch.strided or x.device.type != "cpu" or not x.is_floating_point():
        raise TypeError("not a dense tensor of floating-point numbers")
    return x


def _answers(path: Path) -> dict[str, Tensor]:
    answers = read_torch(path)
    shape = answers[ACCURACIES[0]].shape
    for name in ACCURACIES:
        shares = _dense(answers[name])
        if len(shape) != 1 or shares.shape != shape or not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError(f"{name} must be shares from 0 to 1, one for each test image")
    return answers


def hyperparameters(result: dict[str, Any]) -> dict[str, Any]:
    """All that a run's method was trained with: shared settings, its defaults, its options."""
    shared = {name: result[name] for name in ("lr", "weight_decay", "dim")}
    return {**shared, **result["defaults"], **result["options"]}


def refuse_mixing(
    out: Path,
    settings_list: Sequence[RunSettings],
    *,
    free: Collection[str] = (),
    options: bool = True,
) -> None:
    """Refuse to mix runs of different settings in one folder.

    Args:
        out: The folder of the runs.
        settings_list: The runs that are asked for.
        free: Settings that may differ between runs of the folder.
        options: Whether the options of a method have to agree too.

    Raises:
        CommandError: The folder holds runs whose shared settings differ from those asked for, or
            runs of one of the methods with options that are not among those asked for.
    """
    asked: dict[str, list[dict[str, Any]]] = {}
    for settings in settings_list:
        asked.setdefault(settings.method, []).append(dict(settings.options))
    for run in Run.all_in(out):
        there = run.read_settings()
        for ours in settings_list:
            differing = [
                f"{name} {there[name]} there, {value} asked for"
                for name, value in ours.shared().items()
                if name not in free and there[name] != value
            ]
            same_method = options and there["method"] == ours.method
            if same_method and there["options"] not in asked[ours.method]:
                differing.append(
                    f"options of {ours.method} {there['options']} there, {ours.options} asked for"
                )
            if differing:
                raise CommandError(
                    f"{out} holds runs with other settings ({'; '.join(differing)}); "
                    "give another --out, or the same settings"
                )
