"""Embeddings in files of tensors: torch.save's, read with ``weights_only``, and safetensors."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hsplugin.errors import CommandError
from hsplugin.measure.files import Array

# Before it, weights_only is no protection.
SAFE_TORCH = "2.10"


def _pt(path: Path) -> dict[str, Array]:
    import torch
    from torch.torch_version import TorchVersion

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
            # Of a number alone it makes as many bytes, and weights_only lets it.
            if any(b"bytearray\n" in archive.read(m) for m in pickles):
                raise CommandError(f"{path}: holds objects other than tensors")
    elif size > 2**30:
        raise CommandError(f"{path}: has torch's old format, which cannot be mapped; save it anew")
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
    return arrays


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            "reading .safetensors needs safetensors: pip install 'hsplugin[measure]'"
        ) from error
    arrays = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
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
    return arrays


def _tensor_reader(
    part: Callable[[slice], Any], whole: Any
) -> Callable[[int], Iterator[np.ndarray]]:
    def read(rows: int) -> Iterator[np.ndarray]:
        import torch

        for start in range(0, len(whole), rows):
            chunk = part(slice(start, start + rows))
            if chunk.is_floating_point() and chunk.dtype != torch.float64:
                chunk = chunk.float()
            yield chunk.numpy()

    return read


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
}
