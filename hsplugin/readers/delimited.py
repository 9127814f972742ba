"""Embeddings in text: tables with separators such as csv, and lines of numbers or word vectors."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hsplugin.errors import CommandError
from hsplugin.readers.arrow import are_vectors, table_of
from hsplugin.readers.contents import Contents, missing_package
from hsplugin.readers.table import Kind
from hsplugin.readers.words import are_spaced_numbers, open_spaced, places_of_ids

# A record must fit into a block.
BLOCK_BYTES = 16 * 2**20
SAMPLE_BYTES = 2**20
SAMPLE_RECORDS = 100
# With more, a few megabytes of separators become gigabytes of columns.
MOST_COLUMNS = 2**16
SEPARATORS = ",;\t "
NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)", re.IGNORECASE)
WHOLE = re.compile(r"[-+]?\d+")
MISSING = {"", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "-nan"}
# Of the characters, in other encodings of text that is mostly numbers.
MOST_FOREIGN = 0.1
# Before a line of names, as numpy.savetxt writes it.
COMMENT = "# "
# Fewer numbers that count up may be values.
FEWEST_NAMES = 4
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Dialect:
    """How a table is written: its first records, separator, decimal point and line of names."""

    records: list[list[str]]
    separator: str
    point: str
    named: bool
    blank: int


def open_text(path: Path) -> Contents:
    """Open a table with or without a line of names, or lines of numbers separated by spaces.

    The first 100 records tell the separator (comma, semicolon or tab), the decimal point, whether
    there are names, and what each column holds.

    Raises:
        CommandError: If it has no rows, or its first lines do not belong to a table.
        ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv
    except ImportError as error:
        raise missing_package(path.suffix, "pyarrow", error) from error
    sample, whole = _sample(path)
    if are_spaced_numbers(sample.splitlines()[:SAMPLE_RECORDS]):
        return open_spaced(path)
    dialect = _dialect(path, sample.removeprefix(COMMENT), whole)
    first, *rest = dialect.records
    names = [str(place) for place in range(len(first))]
    if dialect.named:
        names = _distinct([name.strip() for name in first])
    sampled = rest if dialect.named else dialect.records
    if not sampled:
        raise CommandError(f"{path}: has a line of names but no rows")
    kinds: dict[str, Kind] = {
        name: _kind(list(fields))
        for name, fields in zip(names, zip(*sampled, strict=True), strict=True)
    }
    if not dialect.named:
        # In a file without names an id or a label may be written with decimals.
        kinds |= {names[place]: "integer" for place in places_of_ids(sampled)}
    types = {"float": pa.float64(), "integer": pa.int64()}

    def batches(columns: list[str], rows: int, labels: bool) -> Iterator[Any]:
        numeric = pa.string() if labels else pa.float64()
        yield from arrow_csv.open_csv(
            path,
            arrow_csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=names,
                skip_rows=dialect.blank,
                skip_rows_after_names=int(dialect.named),
            ),
            arrow_csv.ParseOptions(delimiter=dialect.separator, newlines_in_values=True),
            arrow_csv.ConvertOptions(
                include_columns=columns,
                column_types={
                    name: numeric if kinds[name] in types else pa.string() for name in columns
                },
                decimal_point=dialect.point,
            ),
        )

    schema = pa.schema([(name, types.get(kinds[name], pa.string())) for name in names])
    table = table_of(path, schema, None, batches, named=dialect.named)
    table.kinds.update({name: kind for name, kind in kinds.items() if kind == "mixed"})
    return table


def _sample(path: Path) -> tuple[str, bool]:
    """The first lines, and whether they are all."""
    with path.open("rb") as file:
        start = file.read(SAMPLE_BYTES)
        # The first records may be longer than the sample.
        while (
            start.count(b"\n") < 3
            and len(start) < 2 * BLOCK_BYTES
            and (more := file.read(SAMPLE_BYTES))
        ):
            start += more
        whole = not file.read(1)
    if start.startswith(UTF16):
        raise CommandError(f"{path}: is text in UTF-16; save it as UTF-8")
    if start.startswith(b"\x1f\x8b"):
        raise CommandError(f"{path}: is compressed; unpack it first")
    longest = max(start.split(b"\n"), key=len, default=b"")
    if len(longest) > BLOCK_BYTES or max(map(longest.count, b",;\t")) >= MOST_COLUMNS:
        raise CommandError(
            f"{path}: has a line of more than {BLOCK_BYTES} bytes or {MOST_COLUMNS} columns; is it "
            f"a table?"
        )
    text = start.decode("utf-8-sig", errors="replace")
    if "\0" in text or text.count("\ufffd") > len(text) * MOST_FOREIGN:
        raise CommandError(f"{path}: is no text in UTF-8")
    # Without the end of the file the last line is not whole.
    return (text if whole else text[: text.rfind("\n") + 1]), whole


def _dialect(path: Path, sample: str, whole: bool) -> Dialect:
    """The separator by which the first records look most like a table of numbers.

    Raises:
        CommandError: If by none they are of one length, or if two lines are names.
    """
    first_line = len(sample) - len(sample.lstrip("\r\n"))
    blank = sample[:first_line].replace("\r\n", "\n").count("\n")
    found = {separator: _records(sample, separator, whole) for separator in SEPARATORS}
    scores: dict[str, tuple[int, int]] = {}
    for separator, records in found.items():
        fields = [field.strip() for record in records for field in record]
        like = sum(NUMBER.fullmatch(field) is not None for field in fields)
        # Text holds spaces, too.
        if len({len(record) for record in records}) == 1 and (
            separator != " " or 2 * like > len(fields)
        ):
            scores[separator] = (like, len(records[0]))
    # A lone column has no separator, and none that merely fails.
    wide = [s for s in scores if scores[s][1] > 1]
    torn = [s for s in ",;\t" if 2 * sum(len(r) > 1 for r in found[s]) > len(found[s])]
    if not scores or (torn and not wide):
        records = found[(torn or [","])[0]]
        odd = next((n for n, record in enumerate(records) if len(record) != len(records[0])), 0)
        raise CommandError(
            f"{path}: its first line has {len(records[0]) if records else 0} fields, its record "
            f"{odd + 1} has {len(records[odd]) if records else 0}; separate fields by commas, "
            f"semicolons or tabs, and remove lines that are no part of the table"
        )
    separator = max(wide or scores, key=lambda s: scores[s])
    records = found[separator]
    numbers = [f for record in records for field in record if NUMBER.fullmatch(f := field.strip())]
    point = "."
    if separator != "," and any("," in number for number in numbers):
        point = ","
        if any("." in number for number in numbers):
            raise CommandError(f"{path}: has numbers with decimal commas and others with points")
    named = _are_names(records[0])
    if named and len(records) > 1 and _count_up(records[1]):
        raise CommandError(
            f"{path}: its second line counts up like names, as pandas writes columns of two "
            f"levels; leave one line of names"
        )
    return Dialect(records, separator, point, named, blank)


def _count_up(fields: list[str]) -> bool:
    there = [field for field in fields if field]
    return len(there) >= FEWEST_NAMES and all(map(str.isdigit, there)) and _are_names(there)


def _records(sample: str, separator: str, whole: bool) -> list[list[str]]:
    reader = csv.reader(io.StringIO(sample.lstrip("\r\n"), newline=""), delimiter=separator)
    limit = csv.field_size_limit(2 * BLOCK_BYTES)
    try:
        records = [record for record in islice(reader, SAMPLE_RECORDS + 1) if record]
        # A line may end within quotes, and the sample within a record.
        return records if whole or len(records) < 3 else records[:-1]
    finally:
        csv.field_size_limit(limit)


def _are_names(fields: list[str]) -> bool:
    """Whether a first line names the columns: in words, or by numbers that count up."""
    counted = [int(f) for f in fields if f.isascii() and f.isdigit() and len(f) < 9]
    in_words = [f for f in fields if f.strip() and not NUMBER.fullmatch(f.strip())]
    if len(in_words) + len(counted) + fields.count("") < len(fields) or fields == [""]:
        return False
    if any(are_vectors([field]) for field in in_words):
        return False
    if not counted:
        return bool(in_words)
    counts_up = counted == list(range(counted[0], counted[0] + len(counted))) and counted[0] < 2
    return counts_up and (len(counted) > 1 or bool(in_words))


def _distinct(names: list[str]) -> list[str]:
    """Names with a number where one repeats an earlier one."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        distinct.append(f"{name}.{count}" if count else name)
    return (
        distinct if len(set(distinct)) == len(names) else [f"{n} {i}" for i, n in enumerate(names)]
    )


def _kind(fields: list[str]) -> Kind:
    """Whether a column's fields are all numbers, some of them, or none."""
    there = [field.strip() for field in fields if field.strip() not in MISSING]
    like = [NUMBER.fullmatch(field) is not None for field in there]
    if there and all(like):
        return "integer" if all(WHOLE.fullmatch(field) for field in there) else "float"
    if not there:
        # A column without any value could be one of features that are all missing.
        return "mixed"
    return "mixed" if any(like) else "other"
