"""Embeddings in files of tensors: .pt, loaded with ``weights_only``, and .safetensors."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from hsplugin.errors import CommandError
from hsplugin.measure.readers.contents import Array, Arrays, missing_package

# In earlier versions weights_only does not protect.
SAFE_TORCH = "2.10"


def open_pt(path: Path) -> Arrays:
    """Open a tensor that torch.save wrote, or a dict of them.

    Raises:
        CommandError: If torch is too old to load it safely, or it holds anything but dense real
            tensors that are backed by the file's bytes.
    """
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise CommandError(
            f"{path}: torch {torch.__version__} may execute what such a file holds "
            f"(CVE-2025-32434, CVE-2026-24747); update to 2.10, or save it as .npy or .safetensors"
        )
    size = path.stat().st_size
    mapped = zipfile.is_zipfile(path)
    if mapped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
            sum(m.file_size for m in members) > size
        ):
            raise CommandError(f"{path}: is a packed archive, which torch.save does not write")
        with zipfile.ZipFile(path) as archive:
            pickles = [m for m in members if m.filename.lower().endswith("data.pkl")]
            # weights_only allows bytearray(n), which allocates n bytes from a single number.
            if any(b"bytearray\n" in archive.read(m) for m in pickles):
                raise CommandError(f"{path}: holds objects other than tensors")
    elif size > 2**30:
        raise CommandError(f"{path}: has torch's old format, which cannot be mapped; save it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    tensors = content if isinstance(content, dict) else {"": content}
    arrays = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
            continue
        name = f"{path}[{key}]" if key != "" else str(path)
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CommandError(f"{name}: is sparse, quantised or without data; save it dense")
        if tensor.is_complex():
            raise CommandError(f"{name}: holds {tensor.dtype}, not real numbers")
        held = min(tensor.untyped_storage().nbytes(), size)
        if tensor.numel() * tensor.element_size() > held:
            raise CommandError(
                f"{name}: claims shape {tuple(tensor.shape)} over {held} bytes; "
                f"save it with .contiguous()"
            )
        if tensor.numel() == 0:
            raise CommandError(f"{name}: is empty, its shape is {tuple(tensor.shape)}")
        arrays[str(key)] = Array(
            name, len(tensor), tuple(tensor.shape[1:]), _tensor_reader(tensor.__getitem__, tensor)
        )
    if not arrays:
        raise CommandError(f"{path}: holds no tensor; save one, or a dict of them")
    return Arrays(path, arrays)


def open_safetensors(path: Path) -> Arrays:
    """Open the tensors of a .safetensors file, all but scalars.

    Raises:
        CommandError: If there is none, or one is empty or complex.
        ImportError: If safetensors is missing.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise missing_package(".safetensors", "safetensors", error) from error
    arrays = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            part = file.get_slice(key)
            shape = tuple(part.get_shape())
            name = f"{path}[{key}]"
            if part.get_dtype() == "C64":
                raise CommandError(f"{name}: holds {part.get_dtype()}, not real numbers")
            if 0 in shape:
                raise CommandError(f"{name}: is empty, its shape is {shape}")
            if shape:
                arrays[key] = Array(
                    name, shape[0], shape[1:], _tensor_reader(part.__getitem__, range(shape[0]))
                )
    if not arrays:
        raise CommandError(f"{path}: holds no tensor")
    return Arrays(path, arrays)


def _tensor_reader(
    part: Callable[[slice], Any], whole: Any
) -> Callable[[int], Iterator[np.ndarray]]:
    def read(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(whole), rows):
            chunk = part(slice(start, start + rows))
            if chunk.is_floating_point() and chunk.dtype != torch.float64:
                chunk = chunk.float()
            yield chunk.numpy()

    return read
