"""Embeddings with two views and labels, saved in every kind of file that can be measured."""

import struct

import numpy as np
import pandas as pd
import safetensors.torch
import torch

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 14)).astype(np.float32) + 0.3
Y = X + 0.2 * RANDOM.normal(size=X.shape).astype(np.float32)
LABELS = np.arange(150) % 3


# Each returns the arguments of ``hsplugin measure`` for what it saved.
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


def npy_with_header(header):
    text = (repr(header) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
