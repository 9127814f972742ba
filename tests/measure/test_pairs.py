"""Pairs with scores, pairs in files and two sides, against their definitions in float64."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import hsplugin
from hsplugin.cli import main
from hsplugin.measure.geometry import Options
from hsplugin.measure.listed import PairList
from hsplugin.measure.pairs import Pairs
from hsplugin.measure.sides import measure_sides
from hsplugin.readers import Array
from tests.measure.files import RANDOM
from tests.metrics import definitions

X = RANDOM.normal(size=(300, 12)) + 0.4
Y = X + 0.5 * RANDOM.normal(size=X.shape) - 0.6
UNIT_X, UNIT_Y = definitions.unit(X), definitions.unit(Y)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    np.save("short.npy", Y[:200])
    return tmp_path


def measured(*arguments):
    assert main(["measure", *arguments, "--json", "out.json"]) == 0
    with open("out.json") as file:
        (content,) = json.load(file)["files"]
    return content


def values(content):
    return {name: metric["value"] for name, metric in content["metrics"].items()}


def potential(x, y, t=2.0):
    return np.exp(-t * np.square(x[:, None] - y[None]).sum(axis=2))


# --- pairs with a score


def scored_pairs(rows=400):
    """Two sides of pairs in which sentences recur, and a score of each pair."""
    first, second = RANDOM.integers(0, 120, rows), RANDOM.integers(0, 120, rows)
    return first, second, RANDOM.integers(0, 6, rows)


def test_scored_pairs_follow_the_protocol_of_simcse(capsys):
    i, j, score = scored_pairs()
    pd.DataFrame({"a": list(X[i]), "b": list(X[j]), "score": score}).to_parquet("sts.parquet")
    file = measured("sts.parquet", *["--key", "a", "--positive-key", "b", "--pair-score", "score"],
                    *["--min-score", "4", "--fit-range", "2", "10"])  # fmt: skip
    good = score >= 4
    used = np.unique(np.concatenate([i, j]))
    assert file["rows"] == len(used)
    found = values(file)
    assert found["alignment"] == pytest.approx(
        definitions.alignment(UNIT_X[i[good]], UNIT_X[j[good]])
    )
    assert found["uniformity"] == pytest.approx(definitions.uniformity(UNIT_X[used]))
    assert found["rankme"] == pytest.approx(definitions.rankme(X[used]))
    assert "lidar" not in found
    assert f"the {good.sum()} of 400 pairs" in capsys.readouterr().out


def test_scores_may_stand_in_a_file_of_their_own():
    i, j, score = scored_pairs()
    np.save("a.npy", X[i].astype(np.float32))
    np.save("b.npy", X[j])
    np.save("score.npy", score)
    arguments = ["a.npy", "--positive", "b.npy", "--scores", "score.npy", "--min-score", "2.5"]
    found = values(measured(*arguments))
    good = score >= 2.5
    expected = definitions.alignment(UNIT_X[i[good]], UNIT_X[j[good]])
    assert found["alignment"] == pytest.approx(expected, rel=1e-5)


def test_listed_scored_pairs_equal_those_of_repeated_rows():
    i, j, score = scored_pairs()
    pd.DataFrame({"a": list(X[i]), "b": list(X[j]), "score": score}).to_parquet("sts.parquet")
    common = ["--pair-score", "score", "--min-score", "4"]
    repeated = measured("sts.parquet", "--key", "a", "--positive-key", "b", *common)
    used, first = np.unique(np.stack([i, j]), return_inverse=True)
    places = first.reshape(2, -1)
    np.save("distinct.npy", X[used])
    frame = pd.DataFrame({"i": places[0], "j": places[1], "score": score})
    frame.to_csv("pairs.csv", index=False)
    listed = measured("distinct.npy", "--pairs", "pairs.csv", *common)
    assert listed["metrics"]["alignment"] == repeated["metrics"]["alignment"]


# --- pairs by number or id


def pair_files():
    """How pairs can be listed: a function that writes them, and the arguments that read them."""
    i, j = RANDOM.integers(0, 300, 500), RANDOM.integers(0, 300, 500)
    ids = np.array([f"row {place}" for place in RANDOM.permutation(300)])

    def csv():
        pd.DataFrame({"i": i, "j": j}).to_csv("p.csv")
        return ["x.npy", "--pairs", "p.csv"]

    def more_columns():
        pd.DataFrame({"time": i * 0.5, "i": i, "j": j}).to_csv("p.csv", index=False)
        return ["x.npy", "--pairs", "p.csv", "--pair-keys", "i", "j"]

    def matrix():
        np.save("p.npy", np.stack([i, j], axis=1))
        return ["x.npy", "--pairs", "p.npy"]

    def by_id():
        frame = pd.DataFrame(X, columns=[f"e{place}" for place in range(12)]).assign(name=ids)
        frame.to_csv("named.csv", index=False)
        pd.DataFrame({"from": ids[i], "to": ids[j]}).to_parquet("p.parquet")
        return ["named.csv", "--pairs", "p.parquet", "--id-key", "name", "--key", "e*"]

    def by_id_in_a_file():
        np.save("ids.npy", ids)
        pd.DataFrame({"from": ids[i], "to": ids[j]}).to_csv("p.csv", index=False)
        return ["x.npy", "--pairs", "p.csv", "--ids", "ids.npy"]

    return [(write, i, j) for write in (csv, more_columns, matrix, by_id, by_id_in_a_file)]


@pytest.mark.parametrize(("write", "i", "j"), pair_files())
def test_alignment_of_listed_pairs(write, i, j):
    file = measured(*write())
    found = values(file)
    assert found["alignment"] == pytest.approx(definitions.alignment(UNIT_X[i], UNIT_X[j]))
    assert found["uniformity"] == pytest.approx(definitions.uniformity(UNIT_X))
    low, high = file["metrics"]["alignment"]["interval"]
    assert low < found["alignment"] < high


def test_users_and_items_by_their_own_ids():
    users, items = np.arange(300) * 7, np.array([f"b{place}" for place in range(200)])
    i, j = RANDOM.integers(0, 300, 900), RANDOM.integers(0, 200, 900)
    np.savez("users.npz", x=X, id=users)
    np.savez("items.npz", x=Y[:200], code=items)
    pd.DataFrame({"user": users[i], "item": items[j]}).to_csv("clicks.csv", index=False)
    file = measured(*["users.npz", "--other", "items.npz", "--pairs", "clicks.csv"],
                    *["--id-key", "id", "--other-id-key", "code"])  # fmt: skip
    assert values(file)["alignment"] == pytest.approx(definitions.alignment(UNIT_X[i], UNIT_Y[j]))
    assert values(file)["uniformity_across"] == pytest.approx(
        float(hsplugin.uniform_loss(
            torch.from_numpy(UNIT_X), queue=torch.from_numpy(UNIT_Y[:200]), intra_batch=False
        ))
    )  # fmt: skip


def test_pairs_of_equal_rows_are_pairs():
    """Sentences may stand in a pair with themselves, which is no reason to leave them out."""
    np.save("score.npy", np.arange(300))
    file = measured("x.npy", "--positive", "x.npy", "--scores", "score.npy", "--min-score", "0")
    assert file["metrics"]["alignment"] == {"value": 0, "interval": [0, 0], "unbiased": 0}
    assert file["rows"] == 300


@pytest.mark.parametrize("sides", [1, 2])
def test_the_error_of_pairs_counts_every_two_that_share_a_row(sides):
    random = np.random.default_rng(0)
    i, j = random.integers(0, 30, 200), random.integers(0, 30, 200)
    # Rows of their own difficulty, which all pairs of such a row share.
    x, y = (definitions.unit(random.normal([4, 0, 0], size=(30, 3))) for _ in range(2))
    # Each pair once; the formula counts the products of a repeated pair twice.
    i, j = np.unique(np.sort([i, j], axis=0) if sides == 1 else [i, j], axis=1)
    y = x if sides == 1 else y
    pairs = Pairs(Options(), sides)
    for here in np.array_split(np.arange(len(i)), 3):
        first, second = torch.from_numpy(x[i[here]]), torch.from_numpy(y[j[here]])
        pairs.add(i[here], j[here], first, second)
    spread = pairs.alignment().spread
    residual = np.square(x[i] - y[j]).sum(axis=1)
    residual -= residual.mean()
    variance = 0.0
    for p in range(len(i)):
        for q in range(len(i)):
            shares = i[p] == i[q] or j[p] == j[q]
            if sides == 1:
                shares |= i[p] == j[q] or j[p] == i[q]
            variance += shares * residual[p] * residual[q]
    assert variance > 2 * np.square(residual).sum()
    factor = spread.groups / (spread.groups - 1)
    assert spread.error == pytest.approx((factor * variance) ** 0.5 / len(i))


@pytest.mark.parametrize("degree", [1, 8])
def test_intervals_of_listed_pairs_cover_the_truth(degree):
    """Pairs that share no row (degree 1), and rows with eight pairs each."""
    random = np.random.default_rng(degree)
    many = definitions.unit(random.normal([1, 0, 0], size=(1_000_000, 3)))
    # E |x - y|^2 = 2 - 2 |E x|^2 of independent unit rows.
    truth = 2 - 2 * np.square(many.mean(axis=0)).sum()
    covered, runs, rows = 0, 300, 160
    for _ in range(runs):
        x = definitions.unit(random.normal([1, 0, 0], size=(rows, 3)))
        order = random.permutation(rows)
        if degree == 1:
            i, j = order[: rows // 2], order[rows // 2 :]
        else:
            i = np.tile(np.arange(rows), degree // 2)
            j = (i + np.repeat(np.arange(1, degree // 2 + 1), rows)) % rows
        pairs = Pairs(Options())
        pairs.add(i, j, torch.from_numpy(x[i]), torch.from_numpy(x[j]))
        low, high = pairs.alignment().interval
        covered += low <= truth <= high
    # 285 are expected; fewer than 270 occur once in two hundred runs.
    assert covered >= 270


# --- two sides


def test_clip_takes_one_flag(capsys):
    np.savez("clip.npz", image_embeds=X, text_embeds=Y)
    file = measured("clip.npz", "--other-key", "text_embeds")
    found = values(file)
    assert found["alignment"] == pytest.approx(definitions.alignment(UNIT_X, UNIT_Y))
    assert found["uniformity"] == pytest.approx(definitions.uniformity(UNIT_X))
    assert values(file["other"])["uniformity"] == pytest.approx(definitions.uniformity(UNIT_Y))
    across = potential(UNIT_X, UNIT_Y)
    strangers = across[~np.eye(len(X), dtype=bool)]
    assert found["uniformity_across"] == pytest.approx(np.log(strangers.mean()))
    gap = np.linalg.norm(UNIT_X.mean(axis=0) - UNIT_Y.mean(axis=0))
    assert found["modality_gap"] == pytest.approx(gap)
    assert "lidar" not in found
    for name in ("uniformity_across", "modality_gap", "alignment"):
        low, high = file["metrics"][name]["interval"]
        assert low < found[name] < high
    assert "row i of one side belongs to row i of the other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(["--other", "short.npy"], UNIT_Y[:200]), (["--other", "y.npy", "--no-pairs"], UNIT_Y)],
)
def test_sides_whose_rows_do_not_belong_together_have_no_alignment(arguments, other):
    found = values(measured("x.npy", *arguments))
    assert "alignment" not in found
    expected = np.log(potential(UNIT_X, other).mean())
    assert found["uniformity_across"] == pytest.approx(expected)


def test_the_gap_is_between_all_rows_however_few_are_sampled():
    few = values(measured("x.npy", "--other", "y.npy", "--max-samples", "4"))
    gap = np.linalg.norm(UNIT_X.mean(axis=0) - UNIT_Y.mean(axis=0))
    assert few["modality_gap"] == pytest.approx(gap)


def test_the_gap_of_long_rows_is_as_long(capsys):
    sides = array_of(1e120 * X), array_of(1e120 * Y)
    found = measure_sides(*sides, True, None, Options(normalize=False)).metrics
    gap = 1e120 * np.linalg.norm(X.mean(axis=0) - Y.mean(axis=0))
    assert found["modality_gap"].value == pytest.approx(gap)
    sides = array_of(1e200 * X), array_of(1e200 * Y)
    found = measure_sides(*sides, True, None, Options(normalize=False)).metrics
    for name in ("alignment", "uniformity_across"):
        assert found[name].missing == "features are too large for it"
        assert found[name].interval is None


@pytest.mark.parametrize("t", [1e-3, 2.0, 1e4])
def test_partners_are_left_out_exactly_for_any_t(t):
    """At t = 1e4 the potential of partners is e^900 times that of all other pairs."""
    near = X + 1e-3 * Y
    sides = [array_of(X), array_of(near)]
    geometry = measure_sides(*sides, True, None, Options(t=t, intervals=False))
    squared = np.square(UNIT_X[:, None] - definitions.unit(near)[None]).sum(axis=2)
    logits = -t * squared[~np.eye(len(X), dtype=bool)]
    expected = np.logaddexp.reduce(logits) - np.log(len(logits))
    assert geometry.metrics["uniformity_across"].value == pytest.approx(expected, rel=1e-9)


def array_of(x):
    return Array(
        "x", len(x), x.shape[1:], lambda rows: iter(np.split(x, range(rows, len(x), rows)))
    )


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_intervals_across_sides_cover_the_truth(together):
    random = np.random.default_rng(1)

    def sides(rows, others):
        x = random.normal([1, 0, 0, 0], size=(rows, 4))
        y = random.normal([0, 1, 0, 0], size=(others, 4))
        return x, (y + 2 * x if together else y)

    x, y = map(definitions.unit, sides(6000, 6000))
    squared = np.maximum(2 - 2 * x @ y.T, 0)
    np.fill_diagonal(squared, np.inf)
    truth = {
        "uniformity_across": np.log(np.exp(-2 * squared).sum() / (6000 * 5999)),
        "modality_gap": np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)),
    }
    covered, runs = dict.fromkeys(truth, 0), 60
    for _ in range(runs):
        arrays = map(array_of, sides(300, 300 if together else 200))
        metrics = measure_sides(*arrays, together, None, Options()).metrics
        for name in truth:
            low, high = metrics[name].interval
            covered[name] += low <= truth[name] <= high
    # 57 are expected; fewer than 50 occur once in a thousand runs.
    assert min(covered.values()) >= 50, covered


# --- what is refused


def pairs_csv(text, name="p.csv"):
    with open(name, "w") as file:
        file.write(text)


REFUSED = [
    ("x.npy --pairs p.csv", "i,j\n0,300\n", "pair 0 (counted from 0) holds '300', no number"),
    ("x.npy --pairs p.csv", "i,j\n0,1\n0,-1\n", "pair 1 (counted from 0) holds '-1'"),
    ("x.npy --pairs p.csv --pair-keys i j", "i,j\n0,1.5\n", "holds '1.5'"),
    ("x.npy --pairs p.csv", "i,j\n0,cat\n", "unless --id-key or --ids names the ids"),
    ("x.npy --pairs p.csv", "i,j,k\n0,1,2\n", "has the columns i, j, k; say by --pair-keys"),
    ("x.npy --pairs p.csv", "0,1\n2,3\n", "may be a pair or names"),
    ("x.npy --pairs p.csv --pair-score s --min-score 4", "i,j,s\n0,1,3\n", "there are no pairs"),
    ("x.npy --pairs p.csv --pair-score s --min-score 4", "i,j,s\n0,1,nan\n", "no finite score"),
    ("x.npy --pairs p.csv --pair-score s", "i,j,s\n0,1,5\n", "take --min-score"),
    ("x.npy --pairs p.csv --min-score 4", "i,j\n0,1\n", "--min-score takes --pair-score"),
    (
        "x.npy --pairs p.csv --ids l.npy",
        "i,j\n0,1\n",
        "(counted from 0) have the same id",
    ),
    ("x.npy --pairs p.csv --ids few.npy", "i,j\n0,1\n", "has 2 ids for 300 rows"),
    ("x.npy --pairs p.csv --ids ok.npy", "i,j\n0,cat\n", "holds 'cat', an id of no row"),
    ("x.npy --pairs p.csv --positive y.npy", "i,j\n0,1\n", "exclude each other"),
    ("x.npy --other y.npy --positive y.npy", "", "exclude each other"),
    ("x.npy --other y.npy --other y.npy", "", "--other is given 2 times for 1 files"),
    ("x.npy --other y.npy --pairs p.csv --no-pairs", "i,j\n0,1\n", "exclude each other"),
    ("x.npy --no-pairs", "", "--no-pairs is about --other"),
    ("x.npy --id-key id", "", "ids are about --pairs"),
    ("x.npy --scores l.npy --min-score 1", "", "scores need pairs"),
    ("x.npy --other y.npy --pairs p.csv --ids ok.npy", "i,j\n0,1\n", "--other-ids or"),
    ("x.npy --other narrow.npy", "", "has 3 dimensions, but x.npy has 12"),
    ("x.npy --positive short.npy --scores l.npy --min-score 1", "", "has 200 rows"),
    ("x.npy --positive y.npy --scores l.npy --min-score 1 --labels l.npy", "", "labels of scored"),
]


@pytest.mark.parametrize(("arguments", "text", "reason"), REFUSED)
def test_what_does_not_belong_together_is_refused(arguments, text, reason, capsys):
    pairs_csv(text)
    np.save("l.npy", np.ones(300))
    np.save("few.npy", np.arange(2))
    np.save("ok.npy", np.arange(300))
    np.save("narrow.npy", X[:, :3])
    assert main(["measure", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1


def test_a_list_of_pairs_is_read_in_pieces(monkeypatch):
    from hsplugin.measure import listed

    monkeypatch.setattr(listed, "LISTED_AT_ONCE", 7)
    monkeypatch.setattr(listed, "LOOKED_UP_AT_ONCE", 3)
    table = np.arange(40).reshape(20, 2)
    found = list(PairList("p", (array_of(table),)).rows(40, 40))
    assert max(len(i) for i, _ in found) == 3
    assert np.concatenate([np.stack(pair, axis=1) for pair in found]).tolist() == table.tolist()
