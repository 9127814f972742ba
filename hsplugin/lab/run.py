"""The folder of one run and every file in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.lab.files import read_json
from hsplugin.lab.methods import recipe
from hsplugin.lab.settings import RunSettings

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
        submitted: The job of a cluster that does the run.
        news: The latest event of the run, for a command on another machine.
        history: One row per measured epoch.
        pairs: Unit projections of two views of each validation image, with labels.
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
        self.submitted = folder / "submitted.json"
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
        return self.result.exists()

    def read_settings(self) -> dict[str, Any]:
        """The settings as a mapping, those that an earlier version did not know at default.

        Raises:
            CommandError: The file is damaged.
        """
        defaults = {f.name: f.default for f in fields(RunSettings) if f.default is not MISSING}
        try:
            return {**defaults, **read_json(self.settings)}
        except ValueError as error:
            raise CommandError(f"{self.settings} is damaged ({error}); remove its folder") from None

    def read_job(self) -> str | None:
        """The job of a cluster that does the run, or did; None if there was none."""
        try:
            return str(read_json(self.submitted)["job"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read_news(self) -> dict[str, Any]:
        """The latest event of a run on another machine; empty before the first."""
        try:
            news = read_json(self.news)
        except (OSError, ValueError):
            return {}
        return news if isinstance(news, dict) else {}

    def read_result(self) -> dict[str, Any]:
        """Settings, measures, ``history`` and ``provenance`` of a finished run.

        ``options`` are those that were given, as in the settings; ``defaults`` are the method's
        own defaults for the others. Measures that an earlier version did not take are None.
        """
        result = {**dict.fromkeys(LATER_MEASURES), **read_json(self.result)}
        if "defaults" not in result:
            # Earlier versions wrote given options, defaults and shared settings as one mapping.
            used, given = result["options"], self.read_settings()["options"]
            known = recipe(result["method"]).defaults if result["framework"] == "lightly" else {}
            result["options"] = given
            result["defaults"] = {k: v for k, v in used.items() if k in known and k not in given}
        return result


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
