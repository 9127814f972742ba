"""Alignment and uniformity of sentence embeddings, as an evaluator of sentence-transformers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

try:
    from sentence_transformers.base.evaluation import BaseEvaluator
except ImportError as error:
    raise ImportError(
        "hsplugin_sentence_transformers needs sentence-transformers: "
        "pip install 'hsplugin[sentence-transformers]'"
    ) from error

from hsplugin import uniformity_optimum
from hsplugin.functional import unit_rows
from hsplugin.metrics import functional


class GeometryEvaluator(BaseEvaluator):  # type: ignore[misc]
    """Measures the geometry of pairs of sentences, by SimCSE's protocol for STS.

    Returns ``alignment`` of the pairs that mean the same and, of all sentences, ``uniformity``,
    ``uniformity_gap`` (to the lowest value that the dimension allows), ``wasserstein_uniformity``
    and ``rankme``. The primary metric is ``align_uniform``, the sum of alignment and uniformity
    that is the paper's objective: less is better, and neither term is good by itself.

    Source: Gao, Yao & Chen, EMNLP 2021, https://arxiv.org/abs/2104.08821.

    Args:
        sentences1: The first sentence of each pair.
        sentences2: The second sentence of each pair.
        scores: How similar the pairs are. Without scores all pairs mean the same.
        threshold: Pairs of this score or more mean the same: 4 of 5 in SimCSE, which is 0.8 of 1.
        batch_size: Sentences that the model encodes at a time.
        name: Precedes the names of the metrics.
        show_progress_bar: Show the progress of encoding.
        write_csv: Add a row to ``geometry_evaluation_<name>_results.csv`` in the output folder.
        truncate_dim: Measure only so many of the first dimensions.

    Raises:
        ValueError: If lengths differ, no pair reaches the threshold, or the threshold is not on
            the scores' scale.

    Example::

        evaluator = GeometryEvaluator(sts["sentence1"], sts["sentence2"], sts["score"])
        evaluator(model)[evaluator.primary_metric]
    """

    def __init__(
        self,
        sentences1: Sequence[str],
        sentences2: Sequence[str],
        scores: Sequence[float] | None = None,
        threshold: float = 0.8,
        batch_size: int = 16,
        name: str = "",
        show_progress_bar: bool = False,
        write_csv: bool = True,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        scores = [threshold] * len(sentences1) if scores is None else scores
        lengths = len(sentences1), len(sentences2), len(scores)
        if len(set(lengths)) > 1:
            raise ValueError(f"sentences1, sentences2 and scores differ in length: {lengths}")
        if threshold <= 1 < max(scores, default=0):
            raise ValueError(
                f"threshold={threshold} is on a scale to 1, but scores go up to {max(scores)}; "
                "give threshold=4 for STS scores from 0 to 5"
            )
        self.positive = torch.tensor([score >= threshold for score in scores], dtype=torch.bool)
        if not self.positive.any():
            raise ValueError(
                f"scores: no pair of {len(scores)} reaches threshold={threshold}, so alignment "
                "has no pairs to measure; lower the threshold"
            )
        self.sentences1, self.sentences2 = list(sentences1), list(sentences2)
        self.threshold = threshold
        self.batch_size = batch_size
        self.name = name
        self.show_progress_bar = show_progress_bar
        self.write_csv = write_csv
        self.truncate_dim = truncate_dim
        self.csv_file = "_".join(filter(None, ["geometry_evaluation", name, "results.csv"]))
        self.greater_is_better = False
        self.primary_metric = "align_uniform"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode the sentences, and return and write their geometry.

        Raises:
            ValueError: If embeddings are NaN or infinite.
        """
        embeddings = model.encode(
            self.sentences1 + self.sentences2,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            convert_to_numpy=True,
            truncate_dim=self.truncate_dim,
        )
        everything = unit_rows(torch.from_numpy(embeddings))
        first, second = everything.chunk(2)
        values = {"alignment": functional.alignment(first[self.positive], second[self.positive])}
        for name in ("uniformity", "wasserstein_uniformity", "rankme"):
            values[name] = getattr(functional, name)(everything)
        values["uniformity_gap"] = values["uniformity"] - uniformity_optimum(everything.shape[1])
        values["align_uniform"] = values["alignment"] + values["uniformity"]
        metrics = {name: float(value) for name, value in values.items()}
        if output_path is not None and self.write_csv:
            self._write({"epoch": epoch, "steps": steps, **metrics}, Path(output_path))
        prefixed: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, prefixed, epoch, steps)
        return prefixed

    def _write(self, row: dict[str, float], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that change the values, for the model card."""
        settings = {"threshold": self.threshold, "truncate_dim": self.truncate_dim}
        return {name: value for name, value in settings.items() if value is not None}
