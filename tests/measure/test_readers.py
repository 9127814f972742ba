"""What the readers accept, and the damaged, hostile and unsuitable files that they refuse."""

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
from tests.measure.files import LABELS, RANDOM, X, Y, npy_with_header, save_npy, save_npz

REFUSED = []


def refused(message):
    """Register a function that spoils a file and returns the arguments that must be refused."""

    def register(spoil):
        REFUSED.append(pytest.param(spoil, message, id=spoil.__name__))
        return spoil

    return register


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@refused("is empty")
def empty(folder):
    (folder / "bad.npy").touch()
    return ["bad.npy"]


@refused("no such file")
def missing(folder):
    return ["bad.npy"]


@refused("a folder without files that can be read")
def empty_folder(folder):
    (folder / "bad.npy").mkdir()
    return ["bad.npy"]


@refused("unknown kind of file '.doc'")
def of_unknown_kind(folder):
    (folder / "bad.doc").write_text("x")
    return ["bad.doc"]


@refused("cannot be read")
def garbage_npy(folder):
    (folder / "bad.npy").write_bytes(b"nothing of the kind")
    return ["bad.npy"]


@refused("its header claims shape (150, 14)")
def truncated_npy(folder):
    whole = io.BytesIO()
    np.save(whole, X)
    (folder / "bad.npy").write_bytes(whole.getvalue()[:-5])
    return ["bad.npy"]


@refused("its header claims shape")
def absurd_npy(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**6)}
    (folder / "bad.npy").write_bytes(npy_with_header(header))
    return ["bad.npy"]


@refused("has shape (-1, 4)")
def negative_npy(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (-1, 4)}
    (folder / "bad.npy").write_bytes(npy_with_header(header) + bytes(64))
    return ["bad.npy"]


@refused("not real numbers")
def objects_npy(folder):
    np.save(folder / "bad.npy", np.array([Touch(folder / "touched")], dtype=object))
    return ["bad.npy"]


@refused("not real numbers")
def complex_npy(folder):
    np.save(folder / "bad.npy", X.astype(complex))
    return ["bad.npy"]


@refused("need shape (rows, dimensions), this has (150,)")
def one_dimensional(folder):
    np.save(folder / "bad.npy", X[:, 0])
    return ["bad.npy"]


@refused("this has (75, 2, 14); --pool mean, max, cls or flatten")
def three_dimensional(folder):
    np.save(folder / "bad.npy", X.reshape(75, 2, 14))
    return ["bad.npy"]


@refused("is empty, its shape is (0, 14)")
def without_rows(folder):
    np.save(folder / "bad.npy", X[:0])
    return ["bad.npy"]


@refused("has 1 row")
def one_row(folder):
    np.save(folder / "bad.npy", X[:1])
    return ["bad.npy"]


@refused("row 77 (counted from 0) holds NaN")
def with_nan(folder):
    x = X.copy()
    x[77, 3] = np.nan
    np.save(folder / "bad.npy", x)
    return ["bad.npy"]


@refused("features are real numbers")
def text_features(folder):
    np.save(folder / "bad.npy", np.full((4, 3), "word"))
    return ["bad.npy"]


@refused("times as many, which embeddings do not")
def bomb_npz(folder):
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**21, 16)}
        archive.writestr("x.npy", npy_with_header(header) + bytes(2**27))
    return ["bad.npz"]


@refused("is packed in a way that numpy does not write")
def bzip2_npz(folder):
    # A block of a few bytes can hold gigabytes, which zipfile unpacks at once.
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(
            "x.npy",
            npy_with_header({"descr": "<f4", "fortran_order": False, "shape": (4, 4)}) + bytes(64),
        )
    return ["bad.npz"]


@refused("is a packed archive")
def bzip2_pt(folder):
    with zipfile.ZipFile(folder / "bad.pt", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x/data.pkl", b"bytearray\n")
    return ["bad.pt"]


@refused("10000000 dimensions take more memory than there is; --no-intervals")
def too_wide(folder):
    header = {"descr": "<f4", "fortran_order": False, "shape": (20, 10**7)}
    with (folder / "bad.npy").open("wb") as file:
        file.write(npy_with_header(header))
        file.truncate(file.tell() + 4 * 20 * 10**7)
    return ["bad.npy"]


@refused("its first line has 1 fields, its record 2 has 14")
def csv_with_a_comment(folder):
    np.savetxt(folder / "bad.csv", X, delimiter=",", header="made by someone")
    return ["bad.csv"]


@refused("65536 columns; is it a table?")
def csv_of_commas(folder):
    (folder / "bad.csv").write_text("1\n" + "," * 10**6)
    return ["bad.csv"]


@refused("its header claims shape")
def lying_npz(folder):
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 16)}
        archive.writestr("x.npy", npy_with_header(header) + bytes(64))
    return ["bad.npz"]


@refused("Bad CRC-32")
def broken_npz(folder):
    save_npz(folder)
    content = bytearray((folder / "x.npz").read_bytes())
    content[3000] ^= 255
    (folder / "bad.npz").write_bytes(content)
    return ["bad.npz", "--key", "x"]


@refused("cannot be read")
def no_zip(folder):
    (folder / "bad.npz").write_bytes(b"PK but no more")
    return ["bad.npz"]


@refused("say which are the features (--key)")
def ambiguous_npz(folder):
    save_npz(folder)
    (folder / "x.npz").rename(folder / "bad.npz")
    return ["bad.npz"]


@refused("did you mean label?")
def unknown_key(folder):
    save_npz(folder)
    (folder / "x.npz").rename(folder / "bad.npz")
    return ["bad.npz", "--key", "lable"]


@refused("objects that are never made")
def pickle_pt(folder):
    torch.save({"x": Touch(folder / "touched")}, folder / "bad.pt")
    return ["bad.pt"]


@refused("bad.pt: ")
def bare_pickle_pt(folder):
    (folder / "bad.pt").write_bytes(pickle.dumps(Touch(folder / "touched")))
    return ["bad.pt"]


@refused("is a packed archive")
def packed_pt(folder):
    torch.save(torch.zeros(2**20, 4), folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "bad.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return ["bad.pt"]


class Made:
    """An object that a pickle creates without any data behind it."""

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


@refused("objects that are never made")
def unbacked_tensor_pt(folder):
    pt_of({"x": Made(torch.Tensor, 10**5, 100)}, folder)
    return ["bad.pt"]


@refused("objects that are never made")
def unbacked_bytes_pt(folder):
    pt_of({"x": Made(bytearray, 10**7)}, folder)
    return ["bad.pt"]


@refused("over 4 bytes")
def expanded_pt(folder):
    torch.save(torch.zeros(1, 1).expand(10**9, 512), folder / "bad.pt")
    return ["bad.pt"]


@refused("is sparse")
def sparse_pt(folder):
    torch.save(torch.eye(4).to_sparse(), folder / "bad.pt")
    return ["bad.pt"]


@refused("cannot be read")
def garbage_safetensors(folder):
    (folder / "bad.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    return ["bad.safetensors"]


@refused("cannot be read")
def lying_safetensors(folder):
    text = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 64], "data_offsets": [0, 16]}})
    content = struct.pack("<Q", len(text)) + text.encode() + bytes(16)
    (folder / "bad.safetensors").write_bytes(content)
    return ["bad.safetensors"]


@refused("no column of vectors and no numbered family")
def csv_of_words(folder):
    (folder / "bad.csv").write_text("name,word\na,b\nc,d\n")
    return ["bad.csv"]


@refused("row 1 (counted from 0) holds NaN, infinite or missing")
def csv_with_a_gap(folder):
    (folder / "bad.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    return ["bad.csv", "--key", "a,b"]


@refused("cannot be read")
def csv_with_a_late_word(folder):
    (folder / "bad.csv").write_text("a,b\n" + "1,2\n" * 200 + "3,word\n")
    return ["bad.csv", "--key", "a,b"]


@refused("no rows")
def csv_of_names_only(folder):
    (folder / "bad.csv").write_text("a,b\n")
    return ["bad.csv"]


@refused("no text in UTF-8")
def binary_csv(folder):
    (folder / "bad.csv").write_bytes(bytes(range(128, 256)) * 50)
    return ["bad.csv"]


@refused("not all of one length")
def ragged_parquet(folder):
    pd.DataFrame({"x": [[1.0, 2.0], [3.0]]}).to_parquet(folder / "bad.parquet")
    return ["bad.parquet"]


@refused("times as many, which embeddings do not")
def bomb_parquet(folder):
    columns = {f"x{i}": np.zeros(2_000_000, dtype=np.float32) for i in range(20)}
    pd.DataFrame(columns).to_parquet(folder / "bad.parquet")
    return ["bad.parquet"]


@refused("its vectors are empty")
def parquet_of_empty_vectors(folder):
    empty = pa.array([[]] * 40, pa.list_(pa.float32()))
    pq.write_table(pa.table({"x": empty}), folder / "bad.parquet")
    return ["bad.parquet"]


@refused("a label of more than 1000 characters")
def bomb_of_parquet_labels(folder):
    save_npy(folder)
    # One text of megabytes and a run length: a file of some hundred bytes, labels of gigabytes.
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 150), pa.array(["a" * 10**7]))
    options = {"compression": "zstd", "write_statistics": False}
    pq.write_table(pa.table({"l": same}), folder / "bad.parquet", **options)
    return ["x.npy", "--labels", "bad.parquet"]


@refused("a label of more than 1000 characters")
def bomb_of_csv_labels(folder):
    save_npy(folder)
    (folder / "bad.csv").write_text("l\n" + "a\n" * 149 + "b" * 10**6)
    return ["x.npy", "--labels", "bad.csv"]


@refused("row 1 (counted from 0) has no label")
def gap_in_csv_labels(folder):
    (folder / "bad.csv").write_text("a1,a2,kind\n1.5,2,cat\n3,4,\n5,6,dog\n")
    return ["bad.csv", "--label-key", "kind"]


@refused("row 1 (counted from 0) has no label")
def gap_in_parquet_labels(folder):
    frame = pd.DataFrame({"a1": [1.0, 2.0], "a2": [1.0, 2.0], "kind": ["cat", None]})
    frame.to_parquet(folder / "bad.parquet")
    return ["bad.parquet", "--label-key", "kind"]


@refused("cannot be read")
def garbage_parquet(folder):
    (folder / "bad.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    return ["bad.parquet"]


@refused("y.npy: has 90 rows, but bad.npy has 150")
def fewer_positives(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "y.npy", Y[:90])
    return ["bad.npy", "--positive", "y.npy"]


@refused("y.csv: has 90 rows, but bad.csv has 150")
def fewer_csv_positives(folder):
    np.savetxt(folder / "bad.csv", X, delimiter=",")
    np.savetxt(folder / "y.csv", Y[:90], delimiter=",")
    return ["bad.csv", "--positive", "y.csv"]


@refused("y.npy: has 9 dimensions, but bad.npy has 14")
def other_dimension(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "y.npy", Y[:, :9])
    return ["bad.npy", "--positive", "y.npy"]


@refused("l.npy: has 7 rows, but bad.npy has 150")
def fewer_labels(folder):
    np.save(folder / "bad.npy", X)
    np.save(folder / "l.npy", LABELS[:7])
    return ["bad.npy", "--labels", "l.npy"]


@refused("need shape (rows,)")
def matrix_of_labels(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--labels", "bad.npy"]


@refused("given 1 times for 2 files")
def positives_for_some(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "bad.npy", "--positive", "bad.npy"]


@refused("--t must be above 0")
def bad_t(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--t", "0"]


@refused("--t must be at most 1e+37")
def t_beyond_float32(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--t", "1e38"]


@refused("--max-samples must be at least 4")
def few_samples(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--max-samples", "3"]


@refused("--confidence must lie between 0 and 1")
def bad_confidence(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--confidence", "1"]


@refused("fit_range=(20, 30) holds fewer than two")
def bad_fit_range(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--fit-range", "20", "30"]


@refused("--device toaster")
def bad_device(folder):
    np.save(folder / "bad.npy", X)
    return ["bad.npy", "--device", "toaster"]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(
    spoil, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["measure", *spoil(tmp_path)]) == 2
    *notes, error = capsys.readouterr().err.strip().split("\n")
    assert message in error
    assert all(note.startswith("hsplugin measure: note: ") for note in notes)
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
def test_labels_may_be_booleans(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    booleans = torch.from_numpy(LABELS > 0)
    np.save("x.npy", X)
    np.save("l.npy", booleans.numpy())
    torch.save(booleans, "l.pt")
    safetensors.torch.save_file({"l": booleans}, "l.safetensors")
    assert main(["measure", "x.npy", "--labels", f"l.{suffix}"]) == 0
    assert "True" in capsys.readouterr().out


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
