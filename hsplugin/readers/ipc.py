"""Embeddings in Arrow's own files: the file format, which Feather is, and the stream format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.readers.arrow import table_of
from hsplugin.readers.contents import check_packing, missing_package
from hsplugin.readers.table import Table

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

    def opened(columns: list[int] | None = None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        source = pa.memory_map(str(path))
        opener = pa.ipc.open_file if start == MAGIC else pa.ipc.open_stream
        return opener(source, options=options)

    schema = opened().schema
    places = {name: place for place, name in enumerate(schema.names)}

    def batches(columns: list[str], rows: int, labels: bool) -> Iterator[Any]:
        reader = opened([places[column] for column in columns])
        unpacked = 0
        whole = reader
        if start == MAGIC:
            whole = map(reader.get_batch, range(reader.num_record_batches))
        for batch in whole:
            batch.validate(full=True)
            unpacked += batch.nbytes
            check_packing(str(path), unpacked, size)
            yield from (batch.slice(first, rows) for first in range(0, len(batch), rows))

    return table_of(path, schema, None, batches)
