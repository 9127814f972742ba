"""Sentences, and training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLUMNS = {
    "anchor": ["the cat sat", "a dog ran", "the bird flew", "a cat ran slowly", "the dog sat"],
    "positive": ["a cat sat", "the dog ran quickly", "a bird flew", "the cat ran", "a dog sat"],
    "negative": ["the mat", "under a tree", "the house", "over the mat quickly", "on a tree"],
}


def pairs() -> dict[str, list[str]]:
    """The first two columns."""
    return {name: COLUMNS[name] for name in ("anchor", "positive")}


def trainer(model: Any, loss: Any, folder: Path, columns: Any = None, **arguments: Any) -> Any:
    """A trainer of ten steps whose batches are the whole data set."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    evaluator = arguments.pop("evaluator", None)
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 10,
            "per_device_train_batch_size": 5,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
            **arguments,
        },
    )
    return SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(columns or pairs()),
        loss=loss,
        evaluator=evaluator,
    )


def logged(trained: Any, name: str) -> list[float]:
    """All logged values of a name, in order."""
    return [entry[name] for entry in trained.state.log_history if name in entry]
