"""The benchmark of the monitor runs, and a step that is not kept costs next to nothing."""

from __future__ import annotations

import json

import pytest

from tests.examples import scripts

pytest.importorskip("pytorch_lightning")
pytest.importorskip("torchvision")


@pytest.mark.slow
def test_steps_with_and_without_are_timed_in_pairs() -> None:
    options = ("--pairs", 6, "--batch-size", 8, "--warm-up", 1)
    printed = scripts.run("monitor_overhead", *options)
    result = json.loads(printed[printed.index("{") :])
    assert result["every_n_steps"] == 50 and result["pairs"] == 6
    step = result["processor"]["median_without_s"]
    assert 0 < result["monitor_own_processor_s"]["step_not_kept"] < 0.01 * step


def test_comparison_states_the_difference_of_medians_and_of_pairs() -> None:
    example = scripts.load("monitor_overhead")
    seconds = {True: [9.0, 1.1, 2.1, 4.4], False: [1.0, 1.0, 2.0, 4.0]}
    result = example.compare(seconds, warm_up=1)
    assert (result["median_without_s"], result["median_with_s"]) == (2.0, 2.1)
    assert result["overhead_of_median_percent"] == pytest.approx(5)
    assert result["median_paired_difference_percent"] == pytest.approx(5)
    assert result["mean_paired_difference_percent"] == pytest.approx(10)
