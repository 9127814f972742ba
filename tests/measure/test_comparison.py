"""Several files side by side: order, differences and their intervals."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from hsplugin.cli import main
from hsplugin.measure.comparison import compare
from hsplugin.measure.geometry import Options, measure
from hsplugin.measure.sides import measure_sides
from tests.measure.files import RANDOM
from tests.measure.test_pairs import array_of
from tests.metrics import definitions

X = RANDOM.normal(size=(500, 6)) + 0.5
# More uniform than X, much less uniform, and X with a little noise.
FILES = {
    "first.npy": X,
    "spread.npy": X - 0.5,
    "narrow.npy": X + 2,
    "noisy.npy": X + 0.02 * RANDOM.normal(size=X.shape),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name, x in FILES.items():
        np.save(name, x)


def uniformity(x):
    return definitions.uniformity(definitions.unit(x))


def test_one_table_of_all_files_sorted_by_a_metric(capsys):
    assert main(["measure", *FILES, "--sort", "uniformity", "--json", "o.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 100
    places = [[line.startswith(name) for line in printed].index(True) for name in FILES]
    order = [name for _, name in sorted(zip(places, FILES, strict=True))]
    assert order == sorted(FILES, key=lambda name: uniformity(FILES[name]))
    assert "the difference to first.npy" in printed[0]
    # Files stay in the order in which they were given.
    with open("o.json") as file:
        files = json.load(file)["files"]
    assert [file["name"] for file in files] == list(FILES)
    assert "difference_to_first" not in files[0]
    difference = files[1]["difference_to_first"]["uniformity"]
    assert difference["value"] == pytest.approx(uniformity(X - 0.5) - uniformity(X), abs=1e-6)


def test_more_is_better_for_ranks(capsys):
    assert main(["measure", *FILES, "--sort", "rankme"]) == 0
    printed = capsys.readouterr().out
    best = max(FILES, key=lambda name: definitions.rankme(FILES[name]))
    assert printed.split("\n\n")[1].splitlines()[1].startswith(best)


def test_a_line_of_csv_a_file():
    assert main(["measure", *FILES, "--sort", "uniformity", "--csv", "o.csv"]) == 0
    with open("o.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sorted(FILES, key=lambda name: uniformity(FILES[name]))
    for row in rows:
        x = FILES[row["name"]]
        assert (int(row["rows"]), int(row["dim"])) == x.shape
        assert float(row["uniformity"]) == pytest.approx(uniformity(x), rel=1e-6)
        low, high = float(row["uniformity_low"]), float(row["uniformity_high"])
        assert low < float(row["uniformity"]) < high
        assert (row["uniformity_difference"] == "") == (row["name"] == "first.npy")


def test_differences_of_the_same_rows_are_known_better_than_each_value():
    first, _, _, noisy = (measure(array_of(x), None, None, Options()) for x in FILES.values())
    (_, entry) = compare([first, noisy], Options())
    low, high = entry.differences["uniformity"].interval
    alone = first.metrics["uniformity"].interval
    assert high - low < 0.2 * (alone[1] - alone[0])
    other = measure(array_of(X[:-1]), None, None, Options())
    (_, entry) = compare([first, other], Options())
    assert entry.differences["uniformity"].interval is not None


def test_a_file_minus_itself_is_zero():
    same = measure(array_of(X), array_of(X - 0.1), None, Options())
    (_, entry) = compare([same, same], Options())
    for name, difference in entry.differences.items():
        assert difference.value == 0, name
        assert difference.interval == (0, 0), name


def test_infinite_values_have_no_difference(capsys):
    for name in ("first.npy", "spread.npy"):
        np.save(name, FILES[name] * [1, 1, 1, 1, 1, 0])
    assert main(["measure", "first.npy", "spread.npy", "--csv", "o.csv", "--html", "o.html"]) == 0
    assert "nan" not in capsys.readouterr().out
    with open("o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["condition_number"] for row in rows] == ["inf", "inf"]
    assert rows[1]["condition_number_difference"] == ""
    assert float(rows[1]["rankme_difference"]) != 0


def test_pairs_that_are_not_the_same_have_a_difference_without_an_interval():
    def alignment(x):
        return definitions.alignment(definitions.unit(x), definitions.unit(x - 0.1))

    few, many = (
        measure_sides(array_of(x), array_of(x - 0.1), True, None, Options()) for x in (X[:300], X)
    )
    (_, entry) = compare([few, many], Options())
    difference = entry.differences["alignment"]
    assert difference.value == pytest.approx(alignment(X) - alignment(X[:300]))
    assert difference.interval is None


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_intervals_of_differences_cover_the_truth(shared):
    """With the same samples in both files, and with samples of their own."""
    random = np.random.default_rng(2)
    shift, scale = np.array([0.5, 0, 0, 0]), np.array([1, 1, 1, 0.5])

    def files(rows):
        x = random.normal(size=(rows, 4))
        return x + shift, (x if shared else random.normal(size=(rows, 4))) * scale

    options = Options(max_samples=4000)
    many = [measure(array_of(x), None, None, options).metrics for x in files(200_000)]
    names = ("uniformity", "rankme", "wasserstein_uniformity", "effective_rank")
    truth = {name: many[1][name].value - many[0][name].value for name in names}
    covered = dict.fromkeys(names, 0)
    for _ in range(60):
        entry = compare([measure(array_of(x), None, None, options) for x in files(500)], options)[1]
        for name in names:
            low, high = entry.differences[name].interval
            covered[name] += low <= truth[name] <= high
    # 57 are expected; fewer than 50 occur once in a thousand runs.
    assert min(covered.values()) >= 50, covered


def test_files_with_different_metrics_share_a_table(capsys):
    np.save("line.npy", X[:, :1])
    assert main(["measure", "line.npy", "first.npy", "--fit-range", "1", "3"]) == 2
    capsys.readouterr()
    arguments = ["line.npy", "first.npy", "--no-intervals", "--sort", "alignment"]
    np.save("l.npy", np.arange(500) % 2)
    assert main(["measure", *arguments, "--labels", "l.npy", "--csv", "o.csv"]) == 0
    assert "[" not in capsys.readouterr().out


def test_an_unknown_metric_is_refused_before_anything_is_read(capsys):
    assert main(["measure", "missing.npy", "--sort", "uniformty"]) == 2
    assert "did you mean uniformity" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_early_gets_no_traceback():
    command = [sys.executable, "-m", "hsplugin.cli", "measure", "first.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        printed = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in printed and "Exception" not in printed
