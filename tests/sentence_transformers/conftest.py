"""A tiny transformer, made from nothing, as no test may ask a hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.sentence_transformers.columns import COLUMNS


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer and 16 dimensions without dropout, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("accelerate")  # the trainer needs it
    folder = tmp_path_factory.mktemp("model")
    words = {word for texts in COLUMNS.values() for text in texts for word in text.split()}
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *sorted(words)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder: Path):
    """The tiny transformer with mean pooling."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(model_folder), device="cpu")
