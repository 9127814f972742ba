"""Embeddings in Arrow's own files: the file format, which Feather is, and the stream format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.readers.arrow import table_of
from hsplugin.readers.contents import check_packing, missing_package
from hsplugin.readers.table import Table

# The places of fields in Arrow's tables: Message, DictionaryBatch and RecordBatch.
HEADER, DICTIONARY_DATA, BUFFERS, COMPRESSION = 2, 1, 2, 3
MAGIC = b"ARROW1"
MAGIC_OF_OLD_FEATHER = b"FEA1"


def open_ipc(path: Path) -> Table:
    """Open a file of record batches, such as Feather writes and ``datasets`` saves.

    Raises:
        CommandError: If it is of Feather's first version.
        ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise missing_package(path.suffix, "pyarrow", error) from error
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start.startswith(MAGIC_OF_OLD_FEATHER):
        raise CommandError(f"{path}: is of Feather's version 1; save it as version 2 or parquet")
    size = path.stat().st_size

    def source() -> Any:
        mapped = pa.memory_map(str(path))
        # The file format is a stream between a magic word and a footer.
        mapped.seek(len(MAGIC) + 2 if start == MAGIC else 0)
        return mapped

    def opened(columns: list[int] | None = None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        return pa.ipc.open_stream(source(), options=options)

    if start == MAGIC:
        # Refuses one whose footer was never written.
        pa.ipc.open_file(pa.memory_map(str(path)))
    check_packing(str(path), sum(map(_unpacked, pa.ipc.MessageReader.open_stream(source()))), size)
    schema = opened().schema
    places = {name: place for place, name in enumerate(schema.names)}

    def batches(columns: list[str], rows: int, labels: bool) -> Iterator[Any]:
        unpacked = 0
        for batch in opened([places[column] for column in columns]):
            batch.validate(full=True)
            # Views may name one value many times.
            unpacked += batch.nbytes
            check_packing(str(path), unpacked, size)
            yield from (batch.slice(first, rows) for first in range(0, len(batch), rows))

    return table_of(path, schema, None, batches)


def _unpacked(message: Any) -> int:
    """The bytes that the buffers of a message claim to unpack to; 0 if they are not packed.

    A message is a flatbuffer: tables of offsets to their fields. Arrow unpacks a whole batch at
    once, whatever its size.
    """
    held = message.metadata.to_pybytes()

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from("<" + kind, held, place)[0])

    def field(table: int, place: int) -> int:
        vtable = table - number("i", table)
        inside = 4 + 2 * place < number("H", vtable)
        offset = number("H", vtable + 4 + 2 * place) if inside else 0
        return table + offset if offset else 0

    def followed(place: int) -> int:
        return place + number("I", place)

    if message.type not in ("record batch", "dictionary"):
        return 0
    batch = followed(field(followed(0), HEADER))
    if message.type == "dictionary":
        batch = followed(field(batch, DICTIONARY_DATA))
    if not field(batch, COMPRESSION):
        return 0
    buffers = followed(field(batch, BUFFERS))
    unpacked = 0
    for place in range(buffers + 4, buffers + 4 + 16 * number("I", buffers), 16):
        offset, length = struct.unpack_from("<qq", held, place)
        if length >= 8:
            # -1 stands before bytes that are not packed.
            (size,) = struct.unpack("<q", message.body[offset : offset + 8])
            unpacked += max(size, 0)
    return unpacked
