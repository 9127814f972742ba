"""Pairs of rows that each have a score, such as sentences with the similarity people see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch

from hsplugin.measure.geometry import Geometry, Options, Progress, measure
from hsplugin.measure.pairs import Pairs, with_pairs
from hsplugin.measure.rows import check_dimensions, scores_of, tensor_of, together
from hsplugin.readers import Array


def measure_scored(
    features: Array,
    positives: Array,
    scores: Array,
    least: float,
    options: Options,
    progress: Progress = lambda rows: None,
) -> Geometry:
    """Measure pairs of which each has a score, by the protocol of SimCSE on STS-B.

    Alignment is over the pairs whose score is at least ``least``. All else is over the distinct
    rows of both sides, since a sentence may stand in several pairs. A row takes some 150 bytes.

    Source: Gao, Yao & Chen, "SimCSE", EMNLP 2021, https://arxiv.org/abs/2104.08821.

    Raises:
        CommandError: If the arrays differ in length or dimension, or a score is no number.
    """
    check_dimensions(features, positives)
    seen: dict[bytes, int] = {}
    pairs = Pairs(options)
    listed = 0

    def read(rows: int) -> Iterator[np.ndarray]:
        nonlocal listed
        waiting = np.zeros((0, *features.shape), dtype=np.float32)
        for chunks in together(features, positives, scores):
            x = tensor_of(features, chunks[0], listed, "cpu")
            y = tensor_of(positives, chunks[1], listed, "cpu")
            dtype = torch.promote_types(x.dtype, y.dtype)
            both = torch.cat([x.to(dtype), y.to(dtype)])
            known = len(seen)
            # Adding zero makes -0 and 0 one value.
            digests = [blake2b(row, digest_size=16).digest() for row in (both + 0).numpy()]
            places = np.array([seen.setdefault(digest, len(seen)) for digest in digests])
            _, first = np.unique(places, return_index=True)
            new = first[places[first] >= known]
            good = scores_of(scores, chunks[2], listed) >= least
            i, j = places[: len(x)][good], places[len(x) :][good]
            here = torch.from_numpy(good)
            pairs.add(i, j, both[: len(x)][here], both[len(x) :][here])
            listed += len(x)
            waiting = np.concatenate([waiting, both.numpy()[new]])
            while len(waiting) >= rows:
                yield waiting[:rows]
                waiting = waiting[rows:]
        if len(waiting):
            yield waiting

    distinct = Array(features.name, None, features.shape, read)
    geometry = with_pairs(measure(distinct, None, None, options, progress), pairs)
    scored = int(pairs.distances.sum())
    return replace(
        geometry,
        remarks=(
            f"alignment is over the {scored} of {listed} pairs with a score of at least "
            f"{least:g}, all else over the {geometry.rows} distinct rows of both sides",
        ),
    )
