"""One run, from its settings to its result; started again in the same folder, it resumes."""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

import hsplugin
from hsplugin.errors import CommandError
from hsplugin.lab import demands, evaluate
from hsplugin.lab.data import Images, load
from hsplugin.lab.files import write_csv, write_json, write_torch
from hsplugin.lab.learner import Batches, Learner, Rows
from hsplugin.lab.log import Log
from hsplugin.lab.methods import UNTRAINED, recipe
from hsplugin.lab.resume import can_resume, set_aside
from hsplugin.lab.run import Run
from hsplugin.lab.settings import Machine, RunSettings
from hsplugin.provenance import cpu_seconds, machine_facts, peak_memory

Notify = Callable[[dict[str, Any]], None]
# Measurements during a run use at most this many images; the final ones use all.
BANK, QUERIES = 10_000, 2_000
# At most so long a piece of training is lost when a run is killed, and the epoch that goes on.
SECONDS_BETWEEN_CHECKPOINTS = 120.0


class Tracker(pl.Callback):  # type: ignore[misc]
    """Measures on the validation split, keeps the best epoch, saves, reports progress."""

    def __init__(
        self, settings: RunSettings, images: Images, run: Run, notify: Notify, log: Log
    ) -> None:
        self.settings, self.images, self.run, self.notify = settings, images, run, notify
        # Lightning gives every callback a ``log`` of its own.
        self.run_log = log
        self.scorer = evaluate.Scorer(images, settings.labels_per_class)
        self.every = max(1, round(settings.epochs / max(1, settings.validations)))
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0
        self.started, self._compiles = False, settings.compile
        self._losses: list[Tensor] = []
        self._since = self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"history": self.history, "best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was saved.

        Raises:
            TypeError: It is something else.
        """
        history, best, seconds = (state_dict[name] for name in ("history", "best", "seconds"))
        if not (isinstance(history, list) and isinstance(best, dict) and seconds >= 0.0):
            raise TypeError("the measures kept in a checkpoint must be a list, a mapping, a number")
        self.history, self.best, self.seconds = history, best, seconds

    def images_per_second(self) -> float | None:
        """Images trained on in a second, all devices together; None before any training."""
        batches = Batches(self.images.pool_size, self.settings.batch_size, self.settings.seed)
        seen = self.settings.epochs * len(batches) * batches.batch_size
        return round(seen / self.seconds, 1) if self.seconds else None

    def measure(self, learner: Learner, epoch: int, loss: float) -> None:
        """Add one row to the history; remember the encoder if its kNN accuracy is the best."""
        learner.eval()
        device = learner.device
        train, validation = self.images.train, self.images.validation
        query = validation.images[:QUERIES]
        accuracy = self.scorer.knn(
            evaluate.features(learner.backbone, train.images[:BANK], device),
            train.labels[:BANK],
            evaluate.features(learner.backbone, query, device),
            validation.labels[:QUERIES],
        )
        pairs = evaluate.positive_pairs(
            learner.backbone, learner.head, learner.augment, query, device
        )
        learner.train()
        self.history.append(
            {
                "epoch": epoch,
                "loss": loss,
                **pairs.geometry(),
                "validation_knn": accuracy,
                "seconds": round(self.seconds, 2),
            }
        )
        labels = validation.labels[:QUERIES]
        self.run_log.measured(self.history[-1], learner.global_step, pairs, labels)
        if epoch > 0 and accuracy > self.best.get("validation_knn", -1.0):
            weights = {
                "backbone": learner.backbone.state_dict(),
                "head": learner.head.state_dict(),
            }
            self.best = {"epoch": epoch, "validation_knn": accuracy, **copy.deepcopy(weights)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the encoder as initialised, unless the run is resumed."""
        self.started = True
        if not self.history and trainer.is_global_zero:
            self.measure(pl_module, 0, math.nan)  # type: ignore[arg-type]
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss on the device, so that the host does not wait for it."""
        self._losses.append(outputs["loss"].detach())
        if self._compiles:
            # The first step of a process compiles; it is left out of the speed.
            self._since, self._compiles = time.monotonic(), False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and save when they are due, report progress."""
        epoch = trainer.current_epoch + 1
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        self._losses.clear()
        self.seconds += time.monotonic() - self._since
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == self.settings.epochs):
            self.measure(pl_module, epoch, loss)  # type: ignore[arg-type]
            write_csv(self.run.history, self.history)
        elif trainer.is_global_zero:
            self.run_log.epoch(epoch, trainer.global_step, {"loss": loss})
        overdue = time.monotonic() - self._saved >= SECONDS_BETWEEN_CHECKPOINTS
        # All ranks save together, whatever their clocks say.
        overdue = trainer.strategy.broadcast(overdue)
        if (overdue or epoch % self.every == 0) and epoch < self.settings.epochs:
            trainer.save_checkpoint(self.run.partial_checkpoint)
            if trainer.is_global_zero:
                os.replace(self.run.partial_checkpoint, self.run.checkpoint)
            self._saved = time.monotonic()
        if trainer.is_global_zero:
            self.notify(
                {
                    "epoch": epoch,
                    "epochs": self.settings.epochs,
                    "loss": loss,
                    "knn": self.history[-1]["validation_knn"],
                    "seconds": self.seconds,
                }
            )
        self._since = time.monotonic()


def _trainer(settings: RunSettings, machine: Machine, tracker: Tracker) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=settings.epochs,
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy="ddp" if machine.ranks > 1 else "auto",
        # What asked for the run knows where its processes come from. Lightning would guess by the
        # environment, which is SLURM's also for a local run within an allocation.
        plugins=[
            SLURMEnvironment(auto_requeue=False)
            if machine.cluster == "slurm"
            else LightningEnvironment()
        ],
        precision=settings.precision,  # type: ignore[arg-type]
        sync_batchnorm=machine.ranks > 1 and machine.accelerator != "cpu",
        use_distributed_sampler=False,
        callbacks=[tracker],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


class _ShareBatches(pl.Callback):  # type: ignore[misc]
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.batches.rank, self.batches.world = trainer.global_rank, trainer.world_size


def train(settings: RunSettings, machine: Machine, run: Run, notify: Notify) -> None:
    """Train and measure one method; the result is written last and marks the run as finished.

    Args:
        settings: What to run.
        machine: Where to run it.
        run: The run's own folder; an unfinished run in it is resumed.
        notify: Called with the progress after each epoch.
    """
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch\.utils\.data")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    if settings.compile:
        _require_compiler()
    if settings.framework == "solo":
        from hsplugin.lab import solo

        solo.train(settings, machine, run, notify)
        return
    with Log(settings, machine, run, notify) as log:
        _train(settings, machine, run, notify, log)


def _require_compiler() -> None:
    """Refuse to start where torch.compile does not work, as every run would fail alike.

    Raises:
        CommandError: What torch says.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1))
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        raise CommandError(f"--compile: torch.compile does not work here: {said}") from None


def _train(settings: RunSettings, machine: Machine, run: Run, notify: Notify, log: Log) -> None:
    write_json(run.settings, settings.as_dict())
    images = load(settings.data, machine.data_dir, settings.train_size, settings.image_size)
    demands.check(settings, images, machine.ranks)
    torch.manual_seed(settings.seed)
    learner = Learner(settings, images, gather=machine.ranks > 1)
    tracker = Tracker(settings, images, run, notify, log)
    if settings.method == UNTRAINED:
        tracker.measure(learner, 0, math.nan)
        write_csv(run.history, tracker.history)
    else:
        pool = images.pool()
        batches = Batches(len(pool), settings.batch_size, settings.seed)
        trainer = _trainer(settings, machine, tracker)
        trainer.callbacks.append(_ShareBatches(batches))  # type: ignore[attr-defined]
        # Its own generator, so that the loader does not draw from the one of the views.
        loader = DataLoader(
            Rows(pool), sampler=batches, batch_size=None, generator=torch.Generator()
        )
        resumes = can_resume(run, learner, notify)
        try:
            path = str(run.checkpoint) if resumes else None
            trainer.fit(learner, loader, ckpt_path=path, weights_only=True)
        except Exception as error:
            if not resumes or tracker.started or machine.ranks > 1:
                raise
            set_aside(run, error, notify)
            _train(settings, machine, run, notify, log)
            return
        if not trainer.is_global_zero:
            return
    _finish(settings, machine, run, learner, tracker, images)


def _finish(
    settings: RunSettings,
    machine: Machine,
    run: Run,
    learner: Learner,
    tracker: Tracker,
    images: Images,
) -> None:
    """Score the last and the best epoch and write the result."""
    learner.eval()
    device = learner.device

    def measured() -> tuple[evaluate.Pairs, dict[str, float], dict[str, Tensor]]:
        pairs = evaluate.positive_pairs(
            learner.backbone, learner.head, learner.augment, images.validation.images, device
        )
        measures, answers = tracker.scorer.final(learner.backbone, device)
        return pairs, {**pairs.geometry(), **measures}, answers

    if not all(bool(weight.isfinite().all()) for weight in learner.parameters()):
        raise RuntimeError("it diverged: weights are NaN or infinite; give a lower --lr")
    last_weights = {"backbone": learner.backbone.state_dict(), "head": learner.head.state_dict()}
    pairs, last, answers = measured()
    best, best_answers, best_epoch = last, answers, tracker.best.get("epoch", 0)
    if best_epoch not in (0, settings.epochs):
        last_weights = copy.deepcopy(last_weights)
        learner.backbone.load_state_dict(tracker.best["backbone"])
        learner.head.load_state_dict(tracker.best["head"])
        _, best, best_answers = measured()
    defaults = recipe(settings.method).defaults
    result: dict[str, Any] = {
        **settings.as_dict(),
        "defaults": {k: v for k, v in defaults.items() if k not in settings.options},
        "parameters": sum(p.numel() for p in learner.backbone.parameters()),
        "uniformity_optimum": hsplugin.uniformity_optimum(pairs.a.shape[1]),
        **last,
        "best_epoch": best_epoch,
        **{f"best_{name}": value for name, value in best.items()},
        "seconds": round(tracker.seconds, 2),
        "images_per_second": tracker.images_per_second(),
        "cpu_seconds": cpu_seconds(),
        "peak_memory_mib": peak_memory(device),
        "history": tracker.history,
        "provenance": {**machine_facts(), "machine": asdict(machine)},
    }
    labels = images.validation.labels
    measures = {k: v for k, v in last.items() if k not in pairs.geometry()}
    measures |= {f"best_{name}": value for name, value in best.items()}
    tracker.run_log.result(measures, learner.global_step, pairs, labels, tracker.history)
    write_torch(run.pairs, pairs.content(labels))
    write_torch(run.answers, {**answers, **{f"best_{name}": a for name, a in best_answers.items()}})
    write_torch(run.encoder, {"last": last_weights, "best": tracker.best})
    write_json(run.result, result)
    for leftover in (run.checkpoint, run.partial_checkpoint):
        leftover.unlink(missing_ok=True)


def main(folder: str) -> None:
    """Continue the run of a folder: what each further process of a DDP run executes."""
    run = Run(Path(folder))
    train(*run.read_job(), run, lambda progress: None)


if __name__ == "__main__":
    main(sys.argv[1])
