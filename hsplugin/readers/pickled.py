"""What torch.save wrote, read without executing any of it.

A pickle is a program for a stack machine whose only way out is to name a function of Python's. Here
no name is looked up: those that torch uses for tensors stand for descriptions of tensors, and all
others for inert placeholders.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from hsplugin.errors import CommandError

# Torch writes bfloat16 as the upper half of float32, which numpy has no name for.
BFLOAT16 = "bfloat16"
DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "UntypedStorage": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
}
# Storages and types of elements; those that are not in DTYPES cannot be read.
OF_TYPES = re.compile(r"\w*Storage|(b?float|u?int|complex)\d\w*")
# More than numpy and torch have; the product of a million sizes takes for ever.
MOST_AXES = 64
MAGIC_OF_OLD_FORMAT = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Storage:
    """The bytes behind tensors: their place in the file and what they hold."""

    key: str
    dtype: str


@dataclass(frozen=True)
class Stored:
    """A tensor as its pickle describes it.

    Attributes:
        storage: The bytes that it views.
        dtype: Numpy's name of the type, "bfloat16", or torch's name of another type.
        offset: Elements before the first.
        shape: Its shape.
        strides: Elements from one index to the next, for each axis.
        problem: Why it cannot be read, or "".
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    problem: str = ""


class Inert:
    """Stands for any object that is no tensor; takes whatever a pickle does to it."""

    __slots__ = ()

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        """Make one, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Take an item of a list."""

    def extend(self, items: object) -> None:
        """Take items of a list."""

    def add(self, item: object) -> None:
        """Take an item of a set."""


class Entries(dict[str, Any]):
    """A dict by text: the hash of nested tuples may take for ever.

    Keys that are no text or number, or alike as text, are told apart by their places.
    """

    __slots__ = ()

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        for key, value in items:
            self[key] = value

    def __setitem__(self, key: object, value: Any) -> None:
        name = str(key) if isinstance(key, str | int | float) else "entry"
        if name in self or name == "entry":
            name = f"{name} {len(self)}"
        super().__setitem__(name, value)


# In C the memo of a pickle is as long as a number in it claims, here it is a dict.
_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_InPython):  # type: ignore[misc]
    """Reads a pickle into dicts, lists, numbers, text, ``Stored`` and ``Inert``."""

    dispatch: ClassVar = dict(_InPython.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        if module == "torch._utils" and name in REBUILDERS:
            return REBUILDERS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return Entries
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("torch", "torch.storage") and OF_TYPES.fullmatch(name):
            return Storage(name, DTYPES.get(name, name))
        if (module.partition(".")[0], name) in ARRAYS_OF_NUMPY:
            return _refused("is a numpy array; save torch.as_tensor(x)")
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        """The description of the bytes that a tensor views."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            return Inert()
        _, kind, key = pid[:3]
        # A sixth entry is a place in another storage, as torch wrote before 0.4.
        if not (isinstance(kind, Storage) and isinstance(key, str)) or any(pid[5:]):
            return Inert()
        self.dtypes[key] = kind.dtype
        return Storage(key, kind.dtype)

    def _empty_dict(self) -> None:
        self.append(Entries())

    def _dict(self) -> None:
        items = self.pop_mark()
        entries = Entries()
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[key] = value
        self.append(entries)

    def _empty_set(self) -> None:
        self.append(Inert())

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.append(Inert())

    def _build(self) -> None:
        self.stack.pop()

    def _bytes_of_claimed_length(self) -> None:
        raise CommandError("holds objects other than tensors")

    dispatch[pickle.EMPTY_DICT[0]] = _empty_dict
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.EMPTY_SET[0]] = _empty_set
    dispatch[pickle.FROZENSET[0]] = _frozen_set
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytes_of_claimed_length


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    dtype = storage.dtype if isinstance(storage, Storage) else ""
    return _stored(storage, dtype, offset, shape, strides, rest[2:3])


def _rebuild_typed(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    dtype = rest[2].dtype if len(rest) > 2 and isinstance(rest[2], Storage) else "another type"
    return _stored(storage, dtype, offset, shape, strides, rest[3:4])


def _stored(
    storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, metadata: tuple[Any, ...]
) -> Stored | Inert:
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= MOST_AXES:
        return Inert()
    numbers = [offset, *shape, *strides]
    if not all(isinstance(number, int) and 0 <= number < 2**62 for number in numbers):
        return Inert()
    # Torch notes only that a sign is to be changed when values are read.
    problem = "is a negated view; save x.resolve_neg()" if "neg" in (*metadata, {})[0] else ""
    return Stored(storage, dtype, offset, tuple(shape), tuple(strides), problem)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _subclass(function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    known = function in REBUILDERS.values() and function is not _subclass
    return function(*arguments) if known else Inert()


def _refused(problem: str) -> Callable[..., Stored]:
    return lambda *rest: Stored(None, "", 0, (), (), problem)


REBUILDERS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_typed,
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
    "_rebuild_from_type_v2": _subclass,
    "_rebuild_sparse_tensor": _refused("is sparse; save x.to_dense()"),
    "_rebuild_nested_tensor": _refused("is nested; save a padded or a flat tensor"),
    "_rebuild_qtensor": _refused("is quantised; save x.dequantize()"),
    "_rebuild_meta_tensor_no_storage": _refused("has no data, as it is on the meta device"),
}


ARRAYS_OF_NUMPY = {("numpy", "_reconstruct"), ("numpy", "_frombuffer")}


def read_pickled(path: Path) -> tuple[Any, Callable[[Stored], np.ndarray]]:
    """The content of a file that torch.save wrote, and the function that maps its tensors.

    Raises:
        CommandError: If it is no such file.
    """
    if zipfile.is_zipfile(path):
        return _read_archive(path)
    return _read_old(path)


def _read_archive(path: Path) -> tuple[Any, Callable[[Stored], np.ndarray]]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()) or (
            sum(m.file_size for m in members.values()) > size
        ):
            raise CommandError(f"{path}: is a packed archive, which torch.save does not write")
        (pickled,) = [n for n in members if n.endswith("/data.pkl") and n.count("/") == 1] or [""]
        if not pickled:
            raise CommandError(f"{path}: is an archive, but not one that torch.save wrote")
        root = pickled.removesuffix("data.pkl")
        order = archive.read(root + "byteorder") if root + "byteorder" in members else b"little"
        with archive.open(pickled) as file:
            content = Unpickler(file).load()

    def whole(stored: Stored) -> np.ndarray:
        assert stored.storage is not None
        info = members.get(f"{root}data/{stored.storage.key}")
        if info is None:
            raise CommandError(f"{path}: lacks the bytes of a tensor")
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = struct.unpack("<HH", file.read(4))
        start = info.header_offset + 30 + sum(lengths)
        return _mapped(path, stored, start, info.file_size, order == b"big")

    return content, whole


def _read_old(path: Path) -> tuple[Any, Callable[[Stored], np.ndarray]]:
    """Torch's format before 1.6: pickles one after another, then each storage's size and bytes."""
    starts: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        if Unpickler(file).load() != MAGIC_OF_OLD_FORMAT:
            raise CommandError(
                f"{path}: is a pickle, which could execute anything; if you trust it, convert it: "
                f"x = pickle.load(open({path.name!r}, 'rb')); np.save('x.npy', np.asarray(x))"
            )
        Unpickler(file).load()
        Unpickler(file).load()
        unpickler = Unpickler(file)
        content = unpickler.load()
        for key in Unpickler(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            width = _dtype(unpickler.dtypes[key]).itemsize
            starts[key] = (file.tell(), count * width)
            file.seek(count * width, 1)

    def whole(stored: Stored) -> np.ndarray:
        assert stored.storage is not None
        if stored.storage.key not in starts:
            raise CommandError(f"{path}: lacks the bytes of a tensor")
        return _mapped(path, stored, *starts[stored.storage.key], False)

    return content, whole


def _dtype(name: str) -> np.dtype[Any]:
    """The type of a storage's elements in numpy.

    Raises:
        CommandError: If numpy has none.
    """
    if name not in DTYPES.values():
        raise CommandError(f"holds {name[:60]}, which numpy does not know; save x.float()")
    return np.dtype("u2" if name == BFLOAT16 else name)


def _mapped(path: Path, stored: Stored, start: int, length: int, big: bool) -> np.ndarray:
    """A tensor over bytes of the file, which numpy holds within their bounds."""
    dtype = _dtype(stored.dtype).newbyteorder("big" if big else "little")
    claimed = math.prod(stored.shape) * dtype.itemsize
    if claimed > length:
        raise CommandError(
            f"claims shape {stored.shape} over {length} bytes; save it with .contiguous()"
        )
    held = np.memmap(path, np.uint8, mode="r", offset=start, shape=(length,))
    strides = [stride * dtype.itemsize for stride in stored.strides]
    return np.ndarray(stored.shape, dtype, held, stored.offset * dtype.itemsize, strides)
