import csv
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from hsplugin.cli import main
from hsplugin.measure import geometry, rows
from hsplugin.measure.readers import Array
from tests.metrics import definitions

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 14)).astype(np.float32) + 0.3
Y = X + 0.2 * RANDOM.normal(size=X.shape).astype(np.float32)
LABELS = np.arange(150) % 3


def save_npy(folder):
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", np.asfortranarray(Y))
    np.save(folder / "l.npy", LABELS)
    return ["x.npy", "--positive", "y.npy", "--labels", "l.npy"]


def save_npz(folder, save=np.savez):
    save(folder / "x.npz", x=X, y=Y, label=LABELS)
    return ["x.npz", "--key", "x", "--positive-key", "y", "--label-key", "label"]


def save_packed_npz(folder):
    return save_npz(folder, np.savez_compressed)


def save_pt(folder):
    tensors = {"x": torch.from_numpy(X), "y": torch.from_numpy(Y), "label": torch.tensor(LABELS)}
    torch.save(tensors, folder / "x.pt")
    return ["x.pt", "--positive-key", "y", "--label-key", "label"]


def save_old_pt(folder):
    content = torch.from_numpy(X)
    torch.save(content, folder / "x.pt", _use_new_zipfile_serialization=False)
    save_npy(folder)
    return ["x.pt", "--positive", "y.npy", "--labels", "l.npy"]


def save_safetensors(folder):
    content = {"x": torch.from_numpy(X), "y": torch.from_numpy(Y), "label": torch.tensor(LABELS)}
    safetensors.torch.save_file(content, folder / "x.safetensors")
    return ["x.safetensors", "--positive-key", "y", "--label-key", "label"]


def frame():
    columns = {f"a{i}": X[:, i] for i in range(14)} | {f"b{i}": Y[:, i] for i in range(14)}
    return pd.DataFrame(columns | {"class": [f"kind {label}" for label in LABELS]})


def save_csv(folder):
    frame().to_csv(folder / "x.csv", index=False)
    return ["x.csv", "--positive-key", "b*", "--label-key", "class"]


def save_csv_of_numbered_columns(folder):
    save_npy(folder)
    pd.DataFrame(X).to_csv(folder / "x.csv", index=False)
    return ["x.csv", "--positive", "y.npy", "--labels", "l.npy"]


def save_csv_with_index(folder):
    save_npy(folder)
    pd.DataFrame(X).to_csv(folder / "x.csv")
    return ["x.csv", "--positive", "y.npy", "--labels", "l.npy"]


def save_parquet_with_index(folder):
    save_npy(folder)
    columns = {f"a{i}": X[:, i] for i in range(14)}
    pd.DataFrame(columns, index=np.arange(150)[::-1]).to_parquet(folder / "x.parquet")
    return ["x.parquet", "--positive", "y.npy", "--labels", "l.npy"]


def save_csv_without_names(folder):
    save_npy(folder)
    np.savetxt(folder / "x.csv", X, delimiter=",")
    return ["x.csv", "--positive", "y.npy", "--labels", "l.npy"]


def save_parquet(folder):
    frame().to_parquet(folder / "x.parquet", row_group_size=50)
    return ["x.parquet", "--key", "a*", "--positive-key", "b*", "--label-key", "class"]


def save_parquet_of_vectors(folder):
    table = pd.DataFrame({"x": list(X), "y": list(Y), "class": LABELS})
    table.to_parquet(folder / "x.parquet", row_group_size=50)
    return ["x.parquet", "--positive-key", "y", "--label-key", "class"]


SAVERS = [
    save_npy,
    save_npz,
    save_packed_npz,
    save_pt,
    save_old_pt,
    save_safetensors,
    save_csv,
    save_csv_without_names,
    save_csv_of_numbered_columns,
    save_csv_with_index,
    save_parquet,
    save_parquet_of_vectors,
    save_parquet_with_index,
]


def measured(folder, *arguments):
    assert main(["measure", *arguments, "--json", str(folder / "out.json")]) == 0
    return json.loads((folder / "out.json").read_text())["files"]


@pytest.mark.parametrize("chunk_bytes", [2**25, 14 * 8 * 16])
@pytest.mark.parametrize("save", SAVERS)
def test_every_kind_of_file_gives_the_defined_values(save, chunk_bytes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "CHUNK_BYTES", chunk_bytes)
    (file,) = measured(tmp_path, *save(tmp_path), "--fit-range", "2", "10")
    assert (file["rows"], file["dim"]) == (150, 14)
    unit_x, unit_y = definitions.unit(X), definitions.unit(Y)
    expected = {
        "alignment": definitions.alignment(unit_x, unit_y),
        "uniformity": definitions.uniformity(unit_x),
        "wasserstein_uniformity": definitions.wasserstein_uniformity(unit_x),
        "rankme": definitions.rankme(X),
        "effective_rank": definitions.effective_rank(X),
        "alpha_req": definitions.alpha_req(X, 2, 10),
        "nesum": definitions.nesum(X),
        "lidar": definitions.lidar(np.stack([X, Y], axis=1)),
        "tolerance": definitions.tolerance(unit_x, LABELS),
        "tolerance_conditional": definitions.tolerance(unit_x, LABELS, conditional=True),
    }
    values = {name: metric["value"] for name, metric in file["metrics"].items()}
    assert values == pytest.approx(expected, rel=2e-5)
    for name, metric in file["metrics"].items():
        low, high = metric["interval"]
        assert low < high, name
    classes = file["uniformity"]["per_class"]
    first = next(iter(classes))
    assert first in ("0", "kind 0")
    assert classes[first] == pytest.approx(definitions.uniformity(unit_x[LABELS == 0]), rel=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    deviations = np.arange(1, 13) ** -0.5

    def population(rows):
        return RANDOM.normal(size=(rows, 12)) * deviations + 0.3

    truth = geometry_of(population(500_000), intervals=False, fit_range=(1, 12)).metrics
    covered = dict.fromkeys(truth, 0)
    for _ in range(60):
        metrics = geometry_of(population(600), fit_range=(1, 12), max_samples=600).metrics
        for name in covered:
            low, high = metrics[name].interval
            covered[name] += low <= truth[name].value <= high
    # 57 are expected; below 50 are found once in a thousand times.
    assert min(covered.values()) >= 50, covered


def geometry_of(x, **options):
    array = Array(
        "x", len(x), x.shape[1:], lambda rows: iter(np.split(x, range(rows, len(x), rows)))
    )
    return geometry.measure(array, None, None, geometry.Options(**options))


def test_uniformity_of_more_rows_than_the_sample_names_the_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    (file,) = measured(tmp_path, "x.npy", "--max-samples", "60")
    assert file["uniformity"]["kept"] == 60
    low, high = file["metrics"]["uniformity"]["interval"]
    assert low < definitions.uniformity(definitions.unit(X)) < high
    printed = capsys.readouterr().out
    assert "from a sample of 60" in printed
    assert "attainable" in printed


def test_spectra_of_few_rows_get_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X[:139])
    (file,) = measured(tmp_path, "x.npy")
    assert file["metrics"]["rankme"]["interval"] is None
    assert file["metrics"]["uniformity"]["interval"] is not None
    assert "from 140 rows on" in capsys.readouterr().out


def test_without_intervals_and_normalisation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    arguments = ["x.npy", "--no-intervals", "--no-normalize", "--t", "0.1"]
    (file,) = measured(tmp_path, *arguments)
    assert file["metrics"]["uniformity"]["interval"] is None
    expected = definitions.uniformity(X, 0.1)
    assert file["metrics"]["uniformity"]["value"] == pytest.approx(expected, rel=1e-5)


def test_a_picture_of_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_npy(tmp_path)
    np.save("plane.npy", X[:, :2])
    np.save("other.npy", Y[:, :2])
    arguments = ["x.npy", "plane.npy", "--positive", "y.npy", "--positive", "other.npy"]
    assert main(["measure", *arguments, "--labels", "l.npy", "--picture", "p.png"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def npy_with_header(header):
    text = (repr(header) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def spoilt(make):
    """Files that must be refused, each with what the message says."""
    return pytest.param(make, id=make.__name__)


def empty(folder):
    (folder / "bad.npy").touch()
    return ["bad.npy"], "is empty"


def missing(folder):
    return ["bad.npy"], "no such file"


def directory(folder):
    (folder / "bad.npy").mkdir()
    return ["bad.npy"], "no such file"


def of_unknown_kind(folder):
    (folder / "bad.doc").write_text("x")
    return ["bad.doc"], "unknown kind of file '.doc'"


def garbage_npy(folder):
    (folder / "bad.npy").write_bytes(b"nothing of the kind")
    return ["bad.npy"], "cannot be read"


def truncated_npy(folder):
    whole = io.BytesIO()
    np.save(whole, X)
    (folder / "bad.npy").write_bytes(whole.getvalue()[:-5])
    return ["bad.npy"], "its header claims shape (150, 14)"


def absurd_npy(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**6)}
    (folder / "bad.npy").write_bytes(npy_with_header(header))
    return ["bad.npy"], "its header claims shape"


def negative_npy(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (-1, 4)}
    (folder / "bad.npy").write_bytes(npy_with_header(header) + bytes(64))
    return ["bad.npy"], "has shape (-1, 4)"


def objects_npy(folder):
    np.save(folder / "bad.npy", np.array([Touch(folder / "touched")], dtype=object))
    return ["bad.npy"], "not real numbers"


def complex_npy(folder):
    np.save(folder / "bad.npy", X.astype(complex))
    return ["bad.npy"], "not real numbers"


def one_dimensional(folder):
    np.save(folder / "bad.npy", X[:, 0])
    return ["bad.npy"], "need shape (rows, dimensions), this has (150,)"


def three_dimensional(folder):
    np.save(folder / "bad.npy", X.reshape(75, 2, 14))
    return ["bad.npy"], "this has (75, 2, 14)"


def without_rows(folder):
    np.save(folder / "bad.npy", X[:0])
    return ["bad.npy"], "is empty, its shape is (0, 14)"


def one_row(folder):
    np.save(folder / "bad.npy", X[:1])
    return ["bad.npy"], "has 1 row"


def with_nan(folder):
    x = X.copy()
    x[77, 3] = np.nan
    np.save(folder / "bad.npy", x)
    return ["bad.npy"], "row 77 (counted from 0) holds NaN"


def with_squares_that_overflow(folder):
    np.save(folder / "bad.npy", X.astype(np.float64) * 1e200)
    return ["bad.npy"], "row 0 (counted from 0) holds NaN, infinite or missing values, or some"


def text_features(folder):
    np.save(folder / "bad.npy", np.full((4, 3), "word"))
    return ["bad.npy"], "features are real numbers"


def bomb_npz(folder):
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**21, 16)}
        archive.writestr("x.npy", npy_with_header(header) + bytes(2**27))
    return ["bad.npz"], "times as many, which embeddings do not"


def bzip2_npz(folder):
    # A block of a few bytes can hold gigabytes, which zipfile unpacks at once.
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(
            "x.npy",
            npy_with_header({"descr": "<f4", "fortran_order": False, "shape": (4, 4)}) + bytes(64),
        )
    return ["bad.npz"], "is packed in a way that numpy does not write"


def bzip2_pt(folder):
    with zipfile.ZipFile(folder / "bad.pt", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x/data.pkl", b"bytearray\n")
    return ["bad.pt"], "is a packed archive"


def too_wide(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (20, 10**7)}
    with (folder / "bad.npy").open("wb") as file:
        file.write(npy_with_header(header))
        file.truncate(file.tell() + 4 * 20 * 10**7)
    return ["bad.npy"], "10000000 dimensions take more memory than there is; --no-intervals"


def csv_with_a_comment(folder):
    np.savetxt(folder / "bad.csv", X, delimiter=",", header="made by someone")
    return ["bad.csv"], "its first line has 1 fields, its second 14"


def csv_of_commas(folder):
    (folder / "bad.csv").write_text("1\n" + "," * 10**6)
    return ["bad.csv"], "65536 columns; is it a csv?"


def lying_npz(folder):
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 16)}
        archive.writestr("x.npy", npy_with_header(header) + bytes(64))
    return ["bad.npz"], "its header claims shape"


def broken_npz(folder):
    save_npz(folder)
    content = bytearray((folder / "x.npz").read_bytes())
    content[3000] ^= 255
    (folder / "bad.npz").write_bytes(content)
    return ["bad.npz", "--key", "x"], "Bad CRC-32"


def no_zip(folder):
    (folder / "bad.npz").write_bytes(b"PK but no more")
    return ["bad.npz"], "cannot be read"


def ambiguous_npz(folder):
    save_npz(folder)
    (folder / "x.npz").rename(folder / "bad.npz")
    return ["bad.npz"], "say which are the features (--key)"


def unknown_key(folder):
    save_npz(folder)
    (folder / "x.npz").rename(folder / "bad.npz")
    return ["bad.npz", "--key", "lable"], "did you mean label?"


def pickle_pt(folder):
    torch.save({"x": Touch(folder / "touched")}, folder / "bad.pt")
    return ["bad.pt"], "objects other than tensors"


def bare_pickle_pt(folder):
    (folder / "bad.pt").write_bytes(pickle.dumps(Touch(folder / "touched")))
    return ["bad.pt"], "bad.pt: "


def packed_pt(folder):
    torch.save(torch.zeros(2**20, 4), folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "bad.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return ["bad.pt"], "is a packed archive"


class Made:
    """What a file can ask for without any data behind it."""

    def __init__(self, kind, *size):
        self.kind, self.size = kind, size

    def __reduce__(self):
        return self.kind, self.size


def pt_of(content, folder):
    torch.save(torch.ones(3), folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "bad.pt", "w") as changed,
    ):
        for name in plain.namelist():
            pickled = name.endswith("data.pkl")
            changed.writestr(name, pickle.dumps(content, 2) if pickled else plain.read(name))


def unbacked_tensor_pt(folder):
    pt_of({"x": Made(torch.Tensor, 10**5, 100)}, folder)
    return ["bad.pt"], "claims shape (100000, 100)"


def unbacked_bytes_pt(folder):
    pt_of({"x": Made(bytearray, 10**7)}, folder)
    return ["bad.pt"], "objects other than tensors"


def expanded_pt(folder):
    torch.save(torch.zeros(1, 1).expand(10**9, 512), folder / "bad.pt")
    return ["bad.pt"], "over 4 bytes"


def sparse_pt(folder):
    torch.save(torch.eye(4).to_sparse(), folder / "bad.pt")
    return ["bad.pt"], "is sparse"


def garbage_safetensors(folder):
    (folder / "bad.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    return ["bad.safetensors"], "cannot be read"


def lying_safetensors(folder):
    text = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 64], "data_offsets": [0, 16]}})
    content = struct.pack("<Q", len(text)) + text.encode() + bytes(16)
    (folder / "bad.safetensors").write_bytes(content)
    return ["bad.safetensors"], "cannot be read"


def csv_of_words(folder):
    (folder / "bad.csv").write_text("name,word\na,b\nc,d\n")
    return ["bad.csv"], "no column of numbers"


def csv_with_a_gap(folder):
    (folder / "bad.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    return ["bad.csv"], "row 1 (counted from 0) holds NaN, infinite or missing"


def csv_with_a_late_word(folder):
    (folder / "bad.csv").write_text("a,b\n" + "1,2\n" * 200 + "3,word\n")
    return ["bad.csv"], "cannot be read"


def csv_of_names_only(folder):
    (folder / "bad.csv").write_text("a,b\n")
    return ["bad.csv"], "no rows"


def binary_csv(folder):
    (folder / "bad.csv").write_bytes(bytes(range(128, 256)) * 50)
    return ["bad.csv"], "cannot be read"


def ragged_parquet(folder):
    pd.DataFrame({"x": [[1.0, 2.0], [3.0]]}).to_parquet(folder / "bad.parquet")
    return ["bad.parquet"], "not all of one length"


def bomb_parquet(folder):
    columns = {f"x{i}": np.zeros(2_000_000, dtype=np.float32) for i in range(20)}
    pd.DataFrame(columns).to_parquet(folder / "bad.parquet")
    return ["bad.parquet"], "times as many, which embeddings do not"


def parquet_of_empty_vectors(folder):
    empty = pa.array([[]] * 40, pa.list_(pa.float32()))
    pq.write_table(pa.table({"x": empty}), folder / "bad.parquet")
    return ["bad.parquet"], "its vectors are empty"


def bomb_of_parquet_labels(folder):
    save_npy(folder)
    # One text of megabytes and a run length: some hundred bytes of file, gigabytes of labels.
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 150), pa.array(["a" * 10**7]))
    options = {"compression": "zstd", "write_statistics": False}
    pq.write_table(pa.table({"l": same}), folder / "bad.parquet", **options)
    return ["x.npy", "--labels", "bad.parquet"], "a label of more than 1000 characters"


def bomb_of_csv_labels(folder):
    save_npy(folder)
    (folder / "bad.csv").write_text("l\n" + "a\n" * 149 + "b" * 10**6)
    return ["x.npy", "--labels", "bad.csv"], "a label of more than 1000 characters"


def gap_in_csv_labels(folder):
    (folder / "bad.csv").write_text("a,b,kind\n1,2,cat\n3,4,\n5,6,dog\n")
    return ["bad.csv", "--label-key", "kind"], "row 1 (counted from 0) has no label"


def gap_in_parquet_labels(folder):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "kind": ["cat", None]})
    frame.to_parquet(folder / "bad.parquet")
    return ["bad.parquet", "--label-key", "kind"], "row 1 (counted from 0) has no label"


def garbage_parquet(folder):
    (folder / "bad.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    return ["bad.parquet"], "cannot be read"


def fewer_positives(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "y.npy", Y[:90])
    return ["bad.npy", "--positive", "y.npy"], "y.npy: has 90 rows, but bad.npy has 150"


def fewer_csv_positives(folder):
    np.savetxt(folder / "bad.csv", X, delimiter=",")
    np.savetxt(folder / "y.csv", Y[:90], delimiter=",")
    return ["bad.csv", "--positive", "y.csv"], "y.csv: has 90 rows, but bad.csv has 150"


def other_dimension(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "y.npy", Y[:, :9])
    return ["bad.npy", "--positive", "y.npy"], "y.npy: has 9 dimensions, but bad.npy has 14"


def fewer_labels(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "l.npy", LABELS[:7])
    return ["bad.npy", "--labels", "l.npy"], "l.npy: has 7 rows, but bad.npy has 150"


def matrix_of_labels(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--labels", "bad.npy"], "need shape (rows,)"


def positives_for_some(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "bad.npy", "--positive", "bad.npy"], "given 1 times for 2 files"


def bad_t(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--t", "0"], "--t must be above 0"


def bad_fit_range(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--fit-range", "20", "30"], "fit_range=(20, 30) holds fewer than two"


def bad_device(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--device", "toaster"], "--device toaster"


@pytest.mark.parametrize(
    "spoil",
    [
        spoilt(make)
        for make in list(globals().values())
        if getattr(make, "__code__", None) is not None
        and make.__code__.co_varnames[:1] == ("folder",)
        and not make.__name__.startswith(("save", "measured"))
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(spoil, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = spoil(tmp_path)
    assert main(["measure", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert error.startswith("hsplugin measure: ")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_csv_without_names_keeps_its_first_row(quoting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with Path("x.csv").open("w", newline="") as file:
        file.write("\n")
        csv.writer(file, quoting=quoting).writerows(X.tolist())
    assert main(["measure", "x.csv"]) == 0
    assert f"{len(X)} rows, 14 dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_labels_may_be_truths(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    truths = torch.from_numpy(LABELS > 0)
    np.save("x.npy", X)
    np.save("l.npy", truths.numpy())
    torch.save(truths, "l.pt")
    safetensors.torch.save_file({"l": truths}, "l.safetensors")
    assert main(["measure", "x.npy", "--labels", f"l.{suffix}"]) == 0
    assert "True" in capsys.readouterr().out


def test_a_torch_that_would_execute_what_a_file_holds_is_not_asked_to(
    tmp_path, monkeypatch, capsys
):
    torch.save(torch.from_numpy(X), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert main(["measure", str(tmp_path / "x.pt")]) == 2
    assert "CVE-2026-24747" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_larger_than_the_memory_allowed_is_streamed(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 100)}
    block = RANDOM.normal(size=(10**5, 100)).astype(np.float32).tobytes()
    with (tmp_path / "large.npy").open("wb") as file:
        file.write(npy_with_header(header))
        for _ in range(10):
            file.write(block)
    script = """
import resource, sys, torch
torch.set_num_threads(1)
from hsplugin.cli import main
import hsplugin.measure.geometry, hsplugin.measure.report
lines = dict(line.split(":") for line in open("/proc/self/status"))
allowed = int(lines["VmData"].split()[0]) * 1024 + 300 * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
try:
    torch.ones(10**8)
except RuntimeError:
    sys.exit(main(["measure", sys.argv[1], "--max-samples", "500"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1000000 rows, 100 dimensions" in done.stdout
