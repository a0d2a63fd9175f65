"""Files whose columns have names and types of their own: Parquet and JSON lines."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson
import pyarrow.parquet as pq

from recblr.data.sources import Source
from recblr.data.tables import (
    BLOCK,
    MORE,
    ColumnNames,
    EmptyFile,
    RawRows,
    first_line,
    position,
)


def read_parquet(source: Source, columns: ColumnNames) -> RawRows:
    try:
        file = pq.ParquetFile(pa.BufferReader(source.read()) if source.member else source.path)
        fields = file.schema_arrow.names
        at = {k: position(source, k, v, fields, False) for k, v in columns.items()}
        table = file.read(columns=[fields[p] for p in at.values()])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a readable Parquet file ({error})") from None
    if not len(table):
        raise EmptyFile(f"{source}: the table has no rows")
    values = (table[fields[at[key]]] for key in ("user", "item", "time"))
    return RawRows(*values, faults=[], places=lambda rows: [f"row {row + 1}" for row in rows])


def read_json_lines(source: Source, columns: ColumnNames, allowed: int) -> RawRows:
    """One JSON object per line. The values of the first line say which types to expect."""
    names = {key: str(name) for key, name in columns.items()}
    line, blank = first_line(source)
    first = _parse_json(line)
    if not isinstance(first, dict):
        raise ValueError(f"{source}: line {blank + 1}: not a JSON object on one line")
    for key, name in names.items():
        position(source, key, name, list(first), False)
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    types = [(name, kinds.get(type(first[name]), pa.string())) for name in names.values()]
    options = pajson.ParseOptions(
        explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"
    )
    with source.open() as stream:
        try:
            table = pajson.read_json(
                pa.PythonFile(stream, mode="r"),
                read_options=pajson.ReadOptions(block_size=BLOCK),
                parse_options=options,
            )
        except pa.ArrowInvalid:  # a broken line, or mixed types
            return _read_json_slowly(source, names, allowed)

    def places(rows: list[int]) -> list[str]:
        with source.open() as lines:
            numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
        return [f"line {numbers[row]}" for row in rows]

    return RawRows(*(table[name] for name in names.values()), faults=[], places=places)


def _read_json_slowly(source: Source, names: dict[str, str], allowed: int) -> RawRows:
    rows: list[list[str]] = []
    numbers: list[int] = []
    faults: list[tuple[str, str]] = []
    with source.open() as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            event = _parse_json(line.decode(errors="replace"))
            if isinstance(event, dict) and all(
                isinstance(event.get(name, ""), (str, int, float)) for name in names.values()
            ):
                rows.append([_text(event.get(name, "")) for name in names.values()])
                numbers.append(number)
            else:
                faults.append((f"line {number}", "not a JSON object with plain values"))
                if len(faults) > allowed + MORE:
                    break
    values = zip(*rows) if rows else ([], [], [])
    columns = (pa.chunked_array([pa.array(list(v), pa.string())]) for v in values)
    return RawRows(
        *columns, faults=faults, places=lambda rows: [f"line {numbers[r]}" for r in rows]
    )


def _text(value: str | float) -> str:
    """As Arrow writes numbers: 1.0 is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse_json(line: str) -> Any:
    """The value, or None for a line that is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None
