"""Each layout as the library that people use writes it, and what is read from it."""

import json
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from hsplugin.cli import main
from hsplugin.errors import CommandError
from hsplugin.measure.rows import known_labels
from hsplugin.readers import find_array
from tests.measure.files import LABELS, X, Y

ROWS, DIM = X.shape
COLUMNS = [f"embedding_{i}" for i in range(DIM)]
FRAME = pd.DataFrame(X, columns=COLUMNS)
VECTORS = pd.DataFrame({"id": range(ROWS), "text": [f"t {i}" for i in range(ROWS)], "v": list(X)})
WRITERS = []


def layout(name, key=None, pool=None):
    """Register a function that writes X under a name."""

    def register(write):
        WRITERS.append(pytest.param(write, name, key, pool, id=write.__name__))
        return write

    return register


@layout("x.csv")
def lightly_embeddings(path):
    from lightly.utils.io import save_embeddings

    save_embeddings(str(path), X, LABELS.tolist(), [f"{i}.jpg" for i in range(ROWS)])


@layout("x.csv")
def pandas_with_named_index(path):
    FRAME.set_index(pd.Index(range(5000, 5000 + ROWS), name="image_id")).to_csv(path)


@layout("x.csv")
def pandas_with_two_indices(path):
    FRAME.reset_index().to_csv(path)


@layout("x.csv")
def pandas_with_scores_and_late_text(path):
    FRAME.assign(score=Y[:, 0], site=[1] * (ROWS - 1) + ["A7"]).to_csv(path, index=False)


@layout("x.csv")
def pandas_with_decimal_commas(path):
    FRAME.to_csv(path, sep=";", decimal=",", index=False)


@layout("x.csv", key="*,!0")
def csv_with_an_id_but_without_names(path):
    FRAME.to_csv(path, header=False)


@layout("x.csv")
def csv_with_file_names_but_without_column_names(path):
    FRAME.set_index(pd.Index([f"{i},a.jpg" for i in range(ROWS)])).to_csv(path, header=False)


@layout("x.tsv")
def pandas_tsv(path):
    FRAME.assign(label=LABELS).to_csv(path, sep="\t", index=False)


@layout("x.txt")
def pandas_with_spaces(path):
    FRAME.to_csv(path, sep=" ", index=False)


@layout("x.txt")
def numpy_text(path):
    np.savetxt(path, X)


@layout("x.csv")
def numpy_semicolons(path):
    np.savetxt(path, X, delimiter=";")


@layout("x.dat")
def numpy_aligned(path):
    np.savetxt(path, X, fmt="%18.9e", delimiter="  ")


@layout("x.csv")
def openai_text_vectors(path):
    frame = pd.DataFrame({"combined": ["Title: a, b;\nContent"] * ROWS, "n_tokens": range(ROWS)})
    frame.assign(embedding=[str(v) for v in X.astype(float).tolist()]).to_csv(path)


@layout("x.csv")
def lists_of_numpy_floats_as_text(path):
    frame = pd.DataFrame({"embedding": [str(list(v)) for v in X]})
    frame.to_csv(path, index=False)


@layout("x.csv")
def numpy_arrays_as_text_over_lines(path):
    VECTORS.to_csv(path, index=False)
    assert path.read_text().count("\n") > 2 * ROWS


@layout("x.parquet")
def text_vectors_in_parquet(path):
    VECTORS.assign(v=[str(v) for v in X]).to_parquet(path)


@layout("x.parquet")
def hugging_face_parquet(path):
    from datasets import Dataset

    rows = {"input_ids": [[1, 2, 3]] * ROWS, "label": LABELS, "embedding": X.tolist()}
    Dataset.from_dict(rows).to_parquet(path)


@layout("x.parquet")
def hugging_face_array(path):
    from datasets import Array2D, Dataset, Features

    features = Features({"v": Array2D((1, DIM), "float32")})
    Dataset.from_dict({"v": X[:, None]}, features=features).to_parquet(path)


@layout("x")
def hugging_face_folder(path):
    from datasets import Dataset

    Dataset.from_dict({"label": LABELS, "v": X.tolist()}).save_to_disk(path, num_shards=3)


@layout("x/train")
def hugging_face_split(path):
    from datasets import Dataset, DatasetDict

    parts = {"train": Dataset.from_dict({"v": X}), "test": Dataset.from_dict({"v": Y})}
    DatasetDict(parts).save_to_disk(path.parent)


@layout("x.parquet")
def structs_of_dimensions(path):
    pq.write_table(pa.table({"v": [dict(zip("0123", row[:4], strict=True)) for row in X]}), path)
    whole = {f"d{i}": X[:, i] for i in range(DIM)}
    struct_array = pa.StructArray.from_arrays(list(map(pa.array, whole.values())), list(whole))
    pq.write_table(pa.table({"id": range(ROWS), "v": struct_array}), path)


@layout("x.arrow")
def fixed_shape_tensors_in_a_stream(path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X)
    table = pa.table({"id": range(ROWS), "v": tensors})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


@layout("x.arrow")
def arrow_file_of_halves(path):
    table = pa.table({"v": pa.array(list(X.astype(np.float16)), pa.list_(pa.float16(), DIM))})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@layout("x.feather")
def feather(path):
    FRAME.assign(name="a").to_feather(path)


@layout("x")
def parquet_parts_in_the_order_of_their_numbers(path):
    path.mkdir()
    for part in range(11):
        rows = VECTORS[part * 15 : part * 15 + 15]
        if len(rows):
            rows.to_parquet(path / f"part-{part}.parquet")
    (path / "_SUCCESS").touch()


@layout("x")
def pyarrow_data_set(path):
    from pyarrow.dataset import write_dataset

    table = pa.Table.from_pandas(VECTORS)
    options = {"max_rows_per_file": 60, "max_rows_per_group": 60}
    write_dataset(table, path, format="parquet", **options)


@layout("x")
def numpy_parts(path):
    path.mkdir()
    for part, rows in enumerate(np.array_split(X, 12)):
        np.save(path / f"img_emb_{part}.npy", rows)


@layout("x.json")
def json_of_vectors(path):
    path.write_text(json.dumps(X.tolist()))


@layout("x.json")
def openai_answer(path):
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(X.tolist())]
    path.write_text(json.dumps({"object": "list", "data": data, "usage": {"total_tokens": 8}}))


@layout("x.json")
def json_of_vectors_by_name(path):
    path.write_text(json.dumps({f"{i}.jpg": v for i, v in enumerate(X.tolist())}))


@layout("x.json")
def json_of_lists(path):
    content = {"model": "m", "embeddings": X.tolist(), "labels": LABELS.tolist()}
    path.write_text(json.dumps(content))


@layout("x.json")
def pandas_json_of_columns(path):
    FRAME.to_json(path, double_precision=15)


@layout("x.json")
def pandas_json_split(path):
    VECTORS.to_json(path, orient="split", double_precision=15)


@layout("x.json")
def pandas_json_records(path):
    VECTORS.to_json(path, orient="records", double_precision=15)


@layout("x.jsonl")
def pandas_json_lines(path):
    VECTORS.to_json(path, orient="records", lines=True, double_precision=15)


@layout("x.json")
def lines_of_vectors_called_json(path):
    path.write_text("".join(json.dumps(v) + "\n" for v in X.tolist()))


@layout("x.h5", key="features")
def h5py_file(path):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=X, chunks=(32, DIM), compression="gzip")
        file.create_dataset("group/other", data=Y)
        file["names"] = [f"n{i}" for i in range(ROWS)]


def word_vectors(path, **options):
    models = pytest.importorskip("gensim.models", reason="gensim has no wheel for Python 3.14")

    vectors = models.KeyedVectors(DIM)
    vectors.add_vectors([f"wörd{i}" for i in range(ROWS)], X)
    vectors.save_word2vec_format(path, sort_attr=None, **options)


@layout("x.bin")
def word2vec_binary(path):
    word_vectors(path, binary=True)


@layout("x.vec")
def word2vec_text(path):
    word_vectors(path)


@layout("x.txt")
def glove(path):
    word_vectors(path, write_header=False)


@layout("x.txt")
def glove_with_spaces_in_words(path):
    words = ["the", ",", '"', ". . .", "1"] + [f"w{i}" for i in range(ROWS - 5)]
    lines = [f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, X, strict=True)]
    path.write_text("".join(lines))


@layout("x.fvecs")
def faiss_fvecs(path):
    from faiss.contrib.vecs_io import fvecs_write

    fvecs_write(str(path), X)


@layout("x.fbin")
def big_ann_fbin(path):
    path.write_bytes(struct.pack("<II", *X.shape) + X.tobytes())


TENSOR = torch.from_numpy(X)


@layout("x.ckpt")
def lightning_checkpoint(path):
    torch.save({"epoch": 3, "state_dict": {"item_embedding.weight": TENSOR}}, path)


class Config:
    """A class that a checkpoint holds an object of."""

    def __init__(self):
        self.final_config_dict = {"device": torch.device("cpu"), "model": "DirectAU"}


@layout("x.pth", key="item_embedding.weight")
def recbole_checkpoint(path):
    model = torch.nn.ModuleDict({"user_embedding": torch.nn.Embedding(9, DIM)})
    model["item_embedding"] = torch.nn.Embedding.from_pretrained(TENSOR.clone(), freeze=False)
    optimizer = torch.optim.Adam(model.parameters())
    model["item_embedding"](torch.arange(3)).sum().backward()
    optimizer.step()
    model["item_embedding"].weight.data[:] = TENSOR
    content = {"config": Config(), "epoch": 1, "state_dict": model.state_dict()}
    torch.save(content | {"optimizer": optimizer.state_dict(), "other_parameter": None}, path)


@layout("x.pt")
def list_of_batches(path):
    torch.save([TENSOR[i : i + 40] for i in range(0, ROWS, 40)], path)


@layout("x.pt")
def tuple_with_labels(path):
    torch.save((TENSOR, torch.tensor(LABELS)), path)


@layout("x.pt")
def vectors_by_name(path):
    torch.save({f"{i}.jpg": vector for i, vector in enumerate(TENSOR)}, path)


@layout("x.pt")
def esm_representations(path):
    torch.save({"label": "p", "mean_representations": {33: TENSOR}}, path)


@layout("x.pt")
def a_slice_stored_by_columns(path):
    torch.save(torch.cat([TENSOR, TENSOR]).T.contiguous().T[:ROWS], path)


@layout("x.bin")
def parameter_in_a_bin_file(path):
    torch.save({"w": torch.nn.Parameter(TENSOR)}, path)


@layout("x.pt")
def old_format_with_several_storages(path):
    content = {"l": torch.tensor(LABELS), "flag": torch.tensor([True]), "x": TENSOR}
    torch.save(content, path, _use_new_zipfile_serialization=False)


@layout("x.safetensors.index.json", key="a.weight")
def sharded_safetensors(path):
    for shard, key in (("m-1.safetensors", "a.weight"), ("m-2.safetensors", "b.weight")):
        safetensors.torch.save_file({key: TENSOR}, path.parent / shard)
    mapping = {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}
    path.write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


@layout("x.safetensors")
def safetensors_beside_an_empty_tensor(path):
    content = {"x": TENSOR.double(), "label": torch.tensor(LABELS), "e": torch.empty(0, 3)}
    safetensors.torch.save_file(content, path)


@layout("x.npz", key="emb")
def npz_beside_objects_and_dates(path):
    names = np.array([f"id{i}" for i in range(ROWS)], dtype=object)
    dates = np.arange(ROWS).astype("M8[D]")
    np.savez(path, emb=X, names=names, dates=dates, none=np.empty((0, 3)), views=X)


@layout("x.npz", key="image_embeds")
def clip_arrays(path):
    np.savez(path, image_embeds=X, text_embeds=Y)


@layout("x.pt", key="x")
def pt_beside_what_cannot_be_measured(path):
    others = {"s": torch.eye(3).to_sparse(), "e": torch.empty(0, 3), "c": torch.zeros(3, 3) * 1j}
    torch.save({"x": TENSOR, "wide": torch.zeros(1, 1).expand(10**6, 50), **others}, path)


@layout("x.npy")
def vectors_with_an_axis_of_one(path):
    np.save(path, X[:, None])


@layout("x.npy", pool="mean")
def tokens_to_average(path):
    np.save(path, np.stack([X - 0.5, X + 0.5, X, X], axis=1))


@layout("x.npy", pool="max")
def maps_to_take_the_maximum_of(path):
    maps = np.stack([X, X - 1, X - 2, X - 3], axis=-1)
    np.save(path, maps.reshape(ROWS, DIM, 2, 2))


@layout("x.npy", pool="cls")
def tokens_of_which_the_first_counts(path):
    np.save(path, np.stack([X, Y, Y], axis=1))


@layout("x.npy", pool="flatten")
def maps_to_flatten(path):
    np.save(path, X.reshape(ROWS, 2, 1, DIM // 2))


@layout("x.parquet", pool="mean")
def lists_of_lists(path):
    pd.DataFrame({"v": [[list(v - 1), list(v + 1)] for v in X]}).to_parquet(path)


def values_of(array):
    return np.concatenate(list(array.chunks(64)))


@pytest.mark.parametrize(("write", "name", "key", "pool"), WRITERS)
def test_a_layout_gives_the_values_that_were_written(write, name, key, pool, tmp_path):
    path = tmp_path / name
    write(path)
    array = find_array(path, key, dimensions=2, purpose="features (--key)", pool=pool)
    found = values_of(array)
    assert array.shape == (DIM,) and array.rows in (None, ROWS)
    tolerance = 2e-3 if write is arrow_file_of_halves else 1e-6
    np.testing.assert_allclose(found.astype(np.float64), X, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "write", [lightly_embeddings, pandas_tsv, json_of_lists, hugging_face_parquet]
)
def test_labels_under_a_known_name_are_taken_and_said(write, tmp_path):
    (name,) = [p.values[1] for p in WRITERS if p.values[0] is write]
    write(tmp_path / name)
    features = find_array(tmp_path / name, None, dimensions=2, purpose="features (--key)")
    labels, said = known_labels(tmp_path / name, features)
    assert [int(label) for label in values_of(labels)] == LABELS.tolist()
    assert "is taken as labels" in said[0]
    if write in (lightly_embeddings, hugging_face_parquet):
        assert "left out" in features.notes[0] and "label" in features.notes[0]


def save_decimals(path):
    np.savez(path, x=X, y=Y[:, 0])


def save_gaps(path):
    np.savez(path, x=X, y=np.array(["a", ""] * (ROWS // 2)))


def save_names_of_rows(path):
    np.savez(path, x=np.tile(X, (7, 1)), y=np.arange(7 * ROWS))


def save_other_rows(path):
    np.savez(path, x=X, y=LABELS[:9])


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (save_decimals, "holds decimals"),
        (save_gaps, "has no label"),
        (save_names_of_rows, "as it has 1050 values"),
        (save_other_rows, "has 9 rows"),
    ],
)
def test_what_only_has_the_name_of_labels_is_not_taken(save, reason, tmp_path):
    save(tmp_path / "x.npz")
    features = find_array(tmp_path / "x.npz", "x", dimensions=2, purpose="features (--key)")
    labels, said = known_labels(tmp_path / "x.npz", features)
    assert labels is None
    assert "not taken as labels" in said[0] and reason in said[0]


def test_bytes_and_bfloat16_are_read_exactly(tmp_path):
    numbers = np.arange(40, dtype=np.uint8).reshape(10, 4) * 6
    rows = b"".join(struct.pack("<i", 4) + row.tobytes() for row in numbers)
    (tmp_path / "x.bvecs").write_bytes(rows)
    (tmp_path / "x.u8bin").write_bytes(struct.pack("<II", 10, 4) + numbers.tobytes())
    pd.DataFrame(np.hstack([numbers, numbers])).add_prefix("e").to_csv(tmp_path / "x.csv")
    odd = np.hstack([numbers[:, :1], numbers[:, :2] / 4])
    pd.DataFrame(odd).astype({0: int}).add_prefix("dim_").to_csv(tmp_path / "odd.csv", index=False)
    halves = TENSOR.bfloat16()
    torch.save(halves, tmp_path / "x.pt")
    expected = {"x.bvecs": numbers, "x.u8bin": numbers, "x.csv": np.hstack([numbers, numbers])}
    expected |= {"odd.csv": odd, "x.pt": halves.float().numpy()}
    for name, values in expected.items():
        array = find_array(tmp_path / name, None, dimensions=2, purpose="features (--key)")
        np.testing.assert_array_equal(values_of(array), values)


def uniformity(x, t=2.0):
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    first, second = np.triu_indices(len(x), 1)
    return np.log(np.exp(-t * ((x[first] - x[second]) ** 2).sum(axis=1)).mean())


@pytest.mark.parametrize(
    "write", [lightly_embeddings, openai_text_vectors, hugging_face_parquet, recbole_checkpoint]
)
def test_what_people_have_is_measured_rightly_with_at_most_one_flag(write, tmp_path, capsys):
    ((_, name, key, _),) = [p.values for p in WRITERS if p.values[0] is write]
    write(tmp_path / name)
    out = tmp_path / "out.json"
    flag = ["--key", key] if key else []
    command = ["measure", str(tmp_path / name), *flag, "--no-intervals", "--json", str(out)]
    assert main(command) == 0
    (found,) = json.loads(out.read_text())["files"]
    assert found["metrics"]["uniformity"]["value"] == pytest.approx(uniformity(X), abs=1e-5)
    assert found["dim"] == DIM


DOUBTS = {
    "two families": ({f"a{i}": [0.5, 1] for i in range(3)} | {f"b{i}": [0.5, 1] for i in range(3)}),
    "names without numbers": {"width": [0.5, 1.5], "height": [0.5, 1.5]},
    "few integers": {"year1": [1, 2], "year2": [3, 4]},
    "labels of many classes": {f"label_{i}": [0.5, 1.0] for i in range(9)},
    "two vectors": {"a": ["[1, 2]", "[3, 4]"], "b": ["[1, 2]", "[3, 4]"]},
    "only an id beside text": {"id": [1, 2], "text": ["a", "b"]},
}


@pytest.mark.parametrize("columns", DOUBTS.values(), ids=DOUBTS)
def test_in_doubt_columns_are_listed_with_the_flag_that_chooses(columns, tmp_path):
    path = tmp_path / "x.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    with pytest.raises(CommandError, match=r"cannot tell which columns.*--key.*'x\*'") as refused:
        find_array(path, None, dimensions=2, purpose="features (--key)")
    assert next(iter(columns)) in str(refused.value)


REFUSALS = {
    "x1,x2,x3\n0.5,1.5,1\n1.5,1,oops\n": "column x3 stands among x1",
    "v\n[0.1 0.2 ... 0.9]\n[0.1 0.2 ... 0.9]\n": "numpy has shortened",
    'v\n"[0.1, 0.2]"\n"[0.1]"\n': "row 1 (counted from 0) has 1 values",
    "a;b\n1,5;2.5\n": "decimal commas and others with points",
    "5,0.5,0.7\n6,0.5,0.8\n": "cannot tell which columns",
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.items())
def test_a_table_that_cannot_be_read_says_why(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(CommandError) as refused:
        values_of(find_array(path, None, dimensions=2, purpose="features (--key)"))
    assert message in str(refused.value)


def save_many_tensors(folder):
    torch.save({f"layer.{i}.weight": torch.ones(2, 2) for i in range(20_000)}, folder / "x.pt")
    return folder / "x.pt", "what is the key", "unknown array"


def save_pickle(folder):
    pd.to_pickle(X, folder / "x.pkl")
    return folder / "x.pkl", None, "np.save('features.npy', np.asarray(x))"


def save_two_arrays(folder):
    np.save(folder / "images.npy", X)
    np.save(folder / "texts.npy", Y)
    return folder, None, "may not belong together"


def save_views(folder):
    torch.save((TENSOR, torch.from_numpy(Y)), folder / "x.pt")
    return folder / "x.pt", None, "say which are the features"


def save_even_batches(folder):
    torch.save(list(TENSOR.split(50)), folder / "x.pt")
    return folder / "x.pt", None, "torch.cat(x)"


def save_external_hdf5(folder):
    import h5py

    (folder / "secret").write_bytes(X.tobytes())
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", X.shape, "f4", external=[(folder / "secret", 0, X.nbytes)])
        file["link"] = h5py.ExternalLink("other.h5", "/x")
    return folder / "x.h5", None, "lies in another file"


def save_unwritten_hdf5(folder):
    import h5py

    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", (10**9, 100), "f4", chunks=(1000, 100))
    return folder / "x.h5", None, "more than 100 times as many"


def save_index_of_elsewhere(folder):
    (folder / "x.safetensors.index.json").write_text('{"weight_map": {"a": "../y.safetensors"}}')
    return folder / "x.safetensors.index.json", None, "no file beside it"


def save_counts_that_lie(folder):
    (folder / "x.bin").write_bytes(b"100000000000 300\nword " + X.tobytes())
    return folder / "x.bin", None, "it is too small"


def save_control_characters(folder):
    np.savez(folder / "x.npz", **{"a\x1b[2J\nb": X, "c": Y})
    return folder / "x.npz", None, r"a\x1b[2J\nb"


@pytest.mark.parametrize(
    "save",
    [
        save_many_tensors,
        save_pickle,
        save_two_arrays,
        save_views,
        save_even_batches,
        save_external_hdf5,
        save_unwritten_hdf5,
        save_index_of_elsewhere,
        save_counts_that_lie,
        save_control_characters,
    ],
)
def test_a_refusal_is_one_short_line_with_the_reason(save, tmp_path):
    path, key, message = save(tmp_path)
    with pytest.raises(CommandError) as refused:
        find_array(path, key, dimensions=2, purpose="features (--key)")
    text = str(refused.value)
    assert message in text
    assert len(text) < 2500 and text.isprintable()


def test_labels_and_names_that_no_terminal_can_show_are_escaped(tmp_path, capsys):
    path = tmp_path / "x\udcff.npz"
    np.savez(path, x=X, l=np.resize([b"\xff\n", b"ok"], ROWS))
    picture = tmp_path / "x.png"
    command = ["measure", str(path), "--label-key", "l", "--picture", str(picture)]
    assert main([*command, "--no-intervals"]) == 0
    shown = capsys.readouterr().out
    assert "x\\udcff.npz" in shown and "uniformity[\\xff\\n]" in shown
    assert picture.stat().st_size > 0
