"""Files that look like features and something else, which a guess would measure wrongly."""

import json
import struct
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from hsplugin.errors import CommandError
from hsplugin.measure.rows import known_labels
from hsplugin.readers import find_array, names_in
from tests.measure.files import LABELS, X, Y

ROWS, DIM = X.shape
COLUMNS = [f"e{i}" for i in range(DIM)]
FRAME = pd.DataFrame(X, columns=COLUMNS)
TENSOR = torch.from_numpy(X)


def read(path, key=None):
    array = find_array(path, key, dimensions=2, purpose="features (--key)")
    return np.concatenate(list(array.chunks(64))).astype(np.float64), array.notes


def names_as_numpy_writes_them(path):
    np.savetxt(path, X, delimiter=",", header=",".join(COLUMNS))


def names_between_spaces(path):
    np.savetxt(path, X, header=" ".join(COLUMNS))


def spaces_after_commas(path):
    lines = [", ".join(COLUMNS), *(", ".join(map(str, row)) for row in X)]
    path.write_text("\n".join(lines))


def one_name_for_all_columns(path):
    FRAME.to_csv(path, index=False, header=["e"] * DIM)


def one_name_as_pandas_reads_it(path):
    one_name_for_all_columns(path)
    pd.read_csv(path).to_csv(path, index=False)


def records_over_lines_in_a_large_file(path):
    frame = pd.DataFrame({"text": ["Title\nFirst, second\nThird " + 30000 * "x"] * ROWS})
    frame.assign(v=[str(row.tolist()) for row in X]).to_csv(path)
    assert path.stat().st_size > 2**20


def word_that_is_a_number_first(path):
    words = ["1", *(f"w{i}" for i in range(1, ROWS))]
    lines = [f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, X, strict=True)]
    path.write_text("".join(lines))


def vectors_beside_metadata(path):
    content = {"ids": [str(i) for i in range(ROWS)], "embeddings": X.tolist(), "documents": None}
    path.write_text(json.dumps(content | {"metadatas": [{"page": 3, "b": 0.5}] * ROWS}))


def records_by_name(path):
    FRAME.set_index(FRAME.index.map("{}.jpg".format)).to_json(
        path, orient="index", double_precision=15
    )


def columns_in_the_order_of_text(path):
    FRAME.sort_index(axis=1).to_parquet(path)
    assert pd.read_parquet(path).columns[2] == "e10"


def pandas_frame_in_hdf5(path, names=COLUMNS):
    import h5py

    with h5py.File(path, "w") as file:
        file["df/axis0"] = file["df/block0_items"] = [name.encode() for name in names]
        file["df/axis1"] = np.arange(ROWS)
        file["df/block0_values"] = X


def old_format_in_a_bin_file(path):
    torch.save({"w": TENSOR}, path, _use_new_zipfile_serialization=False)


def keys_that_are_no_text(path):
    keys = [(0,), np.int64(1), "2", 2, *range(4, ROWS)]
    torch.save(dict(zip(keys, TENSOR, strict=True)), path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (names_as_numpy_writes_them, "x.csv"),
        (names_between_spaces, "x.txt"),
        (spaces_after_commas, "x.csv"),
        (one_name_for_all_columns, "x.csv"),
        (one_name_as_pandas_reads_it, "x.csv"),
        (records_over_lines_in_a_large_file, "x.csv"),
        (word_that_is_a_number_first, "x.txt"),
        (vectors_beside_metadata, "x.json"),
        (records_by_name, "x.json"),
        (columns_in_the_order_of_text, "x.parquet"),
        (pandas_frame_in_hdf5, "x.h5"),
        (old_format_in_a_bin_file, "x.bin"),
        (keys_that_are_no_text, "x.pt"),
    ],
)
def test_all_rows_and_dimensions_are_read_and_nothing_else(write, name, tmp_path):
    write(tmp_path / name)
    np.testing.assert_allclose(read(tmp_path / name)[0], X, rtol=1e-6, atol=1e-6)


def ids_between_tabs(path):
    FRAME.to_csv(path, sep="\t", header=False)


def ids_between_spaces(path):
    np.savetxt(path, np.c_[np.arange(ROWS), X])


def labels_with_decimals(path):
    np.savetxt(path, np.c_[X, LABELS], delimiter=",")


def labels_of_one_class_first(path):
    np.savetxt(path, np.c_[X, np.zeros(ROWS)])


def two_lines_of_names(path):
    pd.concat({"z": pd.DataFrame(X)}, axis=1).to_csv(path)


def tokens_as_text(path):
    pd.DataFrame({"input_ids": ["[101, 7592, 102]"] * ROWS}).to_csv(path)


def gaps_in_text(path):
    pd.DataFrame({"v": ["[0.5, , 0.25]"] * ROWS}).to_csv(path)


def two_vectors_by_numbered_names(path):
    path.write_text(json.dumps({"img1": X[0].tolist(), "img2": X[1].tolist()}))


def rows_by_number(path):
    pd.DataFrame(X).to_json(path, orient="index")


def columns_by_numbered_names_of_rows(path):
    FRAME.set_index(FRAME.index.map("img{}".format)).to_json(path)


def columns_of_other_rows(path):
    path.write_text('{"e0": {"0": 0.5, "1": 1.5}, "e1": {"1": 0.5, "0": 1.5}}')


def boxes_beside_vectors(path):
    boxes = [{"box": [0.5, 0.5, 1.0, float(i)]} for i in range(ROWS)]
    path.write_text(json.dumps({"embeddings": X.tolist(), "metadatas": boxes}))


def arrays_appended(path):
    with path.open("wb") as file:
        np.save(file, X)
        np.save(file, Y)


def split_for_training_and_tests(path):
    torch.save((TENSOR, TENSOR[:20]), path)


def two_views_and_prototypes(path):
    torch.save([TENSOR, torch.from_numpy(Y), TENSOR[:20]], path)


def doubles_as_word_vectors(path):
    rows = b"".join(b"w " + row.tobytes() for row in X.astype(np.float64))
    path.write_bytes(f"{ROWS} {DIM}\n".encode() + rows)


def pandas_frame_with_a_score(path):
    pandas_frame_in_hdf5(path, [*COLUMNS[:-1], "score"])


def negated_view(path):
    torch.save(torch.complex(TENSOR, TENSOR).conj().imag, path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (ids_between_tabs, "x.tsv", "0 may be ids or labels"),
        (ids_between_spaces, "x.txt", "0 may be ids or labels"),
        (labels_with_decimals, "x.csv", f"{DIM} may be ids or labels"),
        (labels_of_one_class_first, "x.dat", f"{DIM} may be ids or labels"),
        (two_lines_of_names, "x.csv", "leave one line of names"),
        (tokens_as_text, "x.csv", "input_ids (integers)"),
        (gaps_in_text, "x.csv", "'[0.5, , 0.25]'"),
        (two_vectors_by_numbered_names, "x.json", "rows or columns"),
        (rows_by_number, "x.json", "rows or columns"),
        (columns_by_numbered_names_of_rows, "x.json", "rows or columns"),
        (columns_of_other_rows, "x.json", "e1 has other rows"),
        (boxes_beside_vectors, "x.json", "could be embeddings, metadatas.box"),
        (arrays_appended, "x.npy", "np.save appended"),
        (split_for_training_and_tests, "x.pt", f"0 {X.shape}, 1 (20, {DIM})"),
        (two_views_and_prototypes, "x.pt", "2 (20,"),
        (doubles_as_word_vectors, "x.bin", "does not end after"),
        (pandas_frame_with_a_score, "x.h5", "to_parquet"),
        (negated_view, "x.pt", "resolve_neg"),
    ],
)
def test_what_a_guess_would_measure_wrongly_is_refused(write, name, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(CommandError) as refused:
        read(tmp_path / name)
    assert message in str(refused.value)


@pytest.mark.parametrize("write", [ids_between_tabs, ids_between_spaces])
def test_ids_in_a_file_without_names_are_left_out_by_their_place(write, tmp_path):
    write(tmp_path / "x.txt")
    np.testing.assert_allclose(read(tmp_path / "x.txt", "*,!0")[0], X, rtol=1e-6)


@pytest.mark.parametrize("features", [X, TENSOR.to_sparse(), TENSOR[:, None].expand(-1, 3, -1)])
def test_what_is_left_out_beside_the_only_matrix_is_said(features, tmp_path):
    if isinstance(features, torch.Tensor) and features.dim() == 3:
        features = features.contiguous()
    torch.save({"features": features, "prototypes": TENSOR[:5]}, tmp_path / "x.pt")
    values, notes = read(tmp_path / "x.pt")
    assert len(values) == 5
    assert "left out features" in notes[0]


@pytest.mark.parametrize("kind", [int, str])
def test_labels_in_a_list_beside_a_tensor_are_taken(kind, tmp_path):
    labels = [kind(label) for label in LABELS]
    content = {"embeddings": TENSOR, "labels": labels, "optimizer": [{"params": [0, 1, 2]}]}
    torch.save(content, tmp_path / "x.pt")
    features = find_array(tmp_path / "x.pt", None, dimensions=2, purpose="features (--key)")
    found, _ = known_labels(tmp_path / "x.pt", features)
    assert np.concatenate(list(found.chunks(64))).tolist() == [str(label) for label in labels]
    assert names_in(tmp_path / "x.pt") == ["embeddings", "labels"]


def test_the_end_of_a_name_keeps_another_side_from_being_the_features(tmp_path):
    torch.save({"out": {"image": TENSOR, "text": TENSOR[:9]}}, tmp_path / "x.pt")
    options = {"dimensions": 2, "purpose": "features (--key)"}
    found = find_array(tmp_path / "x.pt", None, others=["text"], **options)
    assert found.rows == ROWS and not found.notes


def test_lists_of_numbers_in_a_pt_file_are_refused_with_the_remedy(tmp_path):
    torch.save({"embeddings": X.tolist(), "labels": LABELS.tolist()}, tmp_path / "x.pt")
    with pytest.raises(CommandError, match=r"embeddings is a list of lists.*torch.as_tensor"):
        read(tmp_path / "x.pt")


def test_shapes_of_a_million_axes_take_no_time(tmp_path):
    axes = 10**5
    sizes = b"(" + (b"\x8a\x08" + struct.pack("<q", 2**61)) * axes + b"t"
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    strides = b"(" + b"K\x01" * axes + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + strides
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + tensor + b"\x89}tR.")
        archive.writestr("x/data/0", b"0000")
    start = time.monotonic()
    with pytest.raises(CommandError) as refused:
        find_array(tmp_path / "x.pt", None, dimensions=2, purpose="features", pool="flatten")
    assert time.monotonic() - start < 10 and len(str(refused.value)) < 1000


@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_packed_record_batches_are_refused_before_they_are_unpacked(
    opened, codec, dictionary, tmp_path
):
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**26, np.float32)), 64)
    if dictionary:
        zeros = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["a" * 2**28]))
    table = pa.table({"v": zeros})
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with opened(tmp_path / "x.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    del zeros, table
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counting)
    try:
        with pytest.raises(CommandError, match="more than 100 times"):
            find_array(tmp_path / "x.arrow", "v", dimensions=2, purpose="features")
    finally:
        pa.set_memory_pool(before)
    assert counting.max_memory() < 2**24


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_packed_feather_is_read(compression, tmp_path):
    frame = FRAME.assign(kind=pd.Categorical(["a", "b", "c"] * (ROWS // 3)))
    frame.to_feather(tmp_path / "x.feather", compression=compression, chunksize=40)
    np.testing.assert_array_equal(read(tmp_path / "x.feather")[0], X)
    cut = (tmp_path / "x.feather").read_bytes()[:-200]
    (tmp_path / "cut.feather").write_bytes(cut)
    with pytest.raises(CommandError, match="cannot be read"):
        read(tmp_path / "cut.feather")
