"""Histories in, recommendations out: CSV, JSON lines and Parquet, a part at a time."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pandas.util import hash_array

from recblr.data.sources import Source
from recblr.data.tables import find_separator, first_line
from recblr.data.times import TIME_FORMS, parse_times
from recblr.inference.recommender import History, Top

PART = 1 << 23  # bytes of text of a table that are held at a time
MOST_PARTS = 512  # files that are open at a time
PACKED, ROW = 8, 32  # bytes of text for a byte of gzip, and for a row of Parquet (at most, about)
BLOCK = 1 << 20  # bytes that Arrow parses at a time
ROWS = 1 << 16  # JSON objects that become one Arrow batch
HISTORIES = 1 << 12  # the same, for whole histories
USUAL = {"user": ("user_id", "user"), "item": ("item_id", "item"), "time": ("timestamp", "time")}
FORMATS = (".csv", ".parquet", ".jsonl")
SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "rank": pa.int32(),
        "item_id": pa.string(),
        "score": pa.float32(),
        "source": pa.string(),
    }
)

Names = Mapping[str, str | None]


@dataclass(frozen=True)
class Input(Source):
    def __str__(self) -> str:
        return f"input={self.path}"


def read_histories(path: Path | str, columns: Names) -> Iterator[History]:
    """(raw user id, raw item ids, the oldest first) of each user of a file, plain or gz.

    JSON lines `{"user": .., "items": [..]}`, the oldest first. A table, as CSV (any separator),
    JSON lines or Parquet: a row per event, in any order; the rows of a user are sorted by time if
    the table has one, and a row without an item makes a user known. A user's lines are one history.
    columns: names of user, item and time; None = the usual ones. Memory does not grow with the
    file: the users of a large one are spread over parts on disk, and come part by part.
    Raises FileNotFoundError or ValueError, one line that names the file and the way out.
    """
    source = Input(Path(path).expanduser())
    if not source.path.is_file():
        what = "is no file" if source.path.exists() else "no such file"
        raise FileNotFoundError(f"{source}: {what}; input=log takes all users of the log")
    first, _ = first_line(source)
    if source.read(4) == b"PAR1":
        return grouped(parquet_rows(source, columns), source)
    if first.lstrip().startswith("{"):
        keys = json_object(source, 1, first)
        if "items" in keys:
            return grouped(json_histories(source, keys, columns), source)
        return grouped(json_rows(source, keys, columns), source)
    if not first:
        raise ValueError(f"{source}: the file is empty")
    return grouped(delimited_rows(source, first, columns), source)


def json_histories(source: Source, keys: Iterable[str], columns: Names) -> Iterator[pa.Table]:
    """A row per item, and one without an item for a history that has none."""
    user = column_of(source, "user", keys, columns)
    lines = json_lines(source)
    while part := list(islice(lines, HISTORIES)):
        users, items = [], []
        for number, line in part:
            row = json_object(source, number, line)
            history = row.get("items", 0)
            if not isinstance(history, (list, types.NoneType)):
                what = f"items is {history!r}" if "items" in row else "no items"
                raise ValueError(f"{source}: line {number}: {what}, expected a list")
            if not (name := as_text(source, number, row.get(user))):
                where = f"{source}: line {number}"
                raise ValueError(f"{where}: {user} is empty; every history needs one")
            known = [as_text(source, number, item) for item in history or ()] or [""]
            users += [name] * len(known)
            items += known
        yield pa.table({"user": pa.array(users, pa.string()), "item": pa.array(items, pa.string())})


def json_rows(source: Source, keys: Iterable[str], columns: Names) -> Iterator[pa.Table]:
    names = columns_of(source, keys, columns)
    lines = json_lines(source)

    def batches() -> Iterator[dict[str, pa.Array]]:
        while part := list(islice(lines, ROWS)):
            texts: dict[str, list[str]] = {name: [] for name in names.values()}
            for number, line in part:
                row = json_object(source, number, line)
                if other := {"items", *USUAL["time"]} & row.keys() - set(names.values()):
                    raise ValueError(
                        f"{source}: line {number}: has {', '.join(sorted(other))}, which the first "
                        "line has not"
                    )
                if names["item"] not in row:
                    raise ValueError(f"{source}: line {number}: no {names['item']} (null is none)")
                for name, values in texts.items():
                    values.append(as_text(source, number, row.get(name)))
            yield {name: pa.array(values, pa.string()) for name, values in texts.items()}

    return _tables(source, names, batches())


def parquet_rows(source: Source, columns: Names) -> Iterator[pa.Table]:
    try:
        file = pq.ParquetFile(source.path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a readable Parquet file ({error})") from None
    names = columns_of(source, file.schema_arrow.names, columns)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from file.iter_batches(ROWS, columns=list(names.values()))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{source}: damaged Parquet file ({error})") from None

    return _tables(source, names, batches())


def delimited_rows(source: Source, first: str, columns: Names) -> Iterator[pa.Table]:
    mark = find_separator(first, {})
    mark = mark if mark in first else ","  # a single column
    fields = next(csv.reader([first], delimiter=mark))
    names = columns_of(source, fields, columns)
    try:
        with source.open() as stream:
            reader = pacsv.open_csv(
                stream,
                pacsv.ReadOptions(block_size=BLOCK),
                pacsv.ParseOptions(delimiter=mark),
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names.values(), pa.string()),
                    include_columns=list(names.values()),
                    strings_can_be_null=False,
                ),
            )
            yield from _tables(source, names, reader)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from None


def _tables(source: Source, names: Mapping[str, str], batches: Iterable[Any]) -> Iterator[pa.Table]:
    """Columns user and item as text, and time, if there is one.

    batches: column name -> Arrow array. ValueError at their end if any row had no user.
    """
    nobody = 0
    for batch in batches:
        columns = {key: batch[name] for key, name in names.items()}
        for key in ("user", "item"):
            if pa.types.is_nested(columns[key].type):
                kind = columns[key].type
                raise ValueError(f"{source}: {names[key]} is {kind}, expected an id a row")
            columns[key] = columns[key].cast(pa.string()).fill_null("")
        nobody += pc.call_function("equal", [columns["user"], pa.scalar("")]).true_count
        yield pa.table(columns)
    if nobody:
        raise ValueError(
            f"{source}: {names['user']} is empty in {nobody:,} rows; fill or drop them"
        )


def grouped(tables: Iterator[pa.Table], source: Source) -> Iterator[History]:
    """Histories of a table whose rows are in any order."""
    parts = min(1 + text_bytes(source) // PART, MOST_PARTS)
    if parts == 1:
        yield from histories_of_part(list(tables), source)
        return
    with tempfile.TemporaryDirectory(prefix="recommend-") as folder:
        names = [Path(folder, f"{number}.arrow") for number in range(parts)]
        with ExitStack() as stack:
            writers: list[Any] = [None] * parts
            for table in tables:
                part = hash_array(table["user"].to_numpy()) % parts  # pyright: ignore[reportCallIssue]
                for number in np.unique(part):
                    if writers[number] is None:
                        writer = pa.ipc.new_stream(str(names[number]), table.schema)
                        writers[number] = stack.enter_context(writer)
                    writers[number].write_table(table.filter(pa.array(part == number)))
        for name, writer in zip(names, writers):
            if writer is not None:
                with pa.ipc.open_stream(str(name)) as reader:
                    rows = [reader.read_all()]
                yield from histories_of_part(rows, source)


def text_bytes(source: Source) -> int:
    """About how much text a table is."""
    if source.read(4) == b"PAR1":
        return ROW * pq.read_metadata(source.path).num_rows
    return source.path.stat().st_size * (PACKED if source.path.suffix == ".gz" else 1)


def histories_of_part(tables: list[pa.Table], source: Source) -> Iterator[History]:
    """In the order of the users' first rows."""
    if not tables:
        return
    table = pa.concat_tables(tables)
    users = table["user"].combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    if "time" in table.column_names:
        times, bad = parse_times(table["time"])
        # What only makes a user known needs no time.
        bad &= pc.call_function("not_equal", [table["item"], pa.scalar("")]).to_numpy()
        if bad.any():
            value = table["time"][int(bad.argmax())]
            raise ValueError(f"{source}: time '{value}' cannot be read (expected {TIME_FORMS})")
        order = np.lexsort((times, codes))
    items = table["item"].take(pa.array(order))
    stops = np.bincount(codes).cumsum()
    for first in range(0, len(stops), HISTORIES):  # Python's strings take ten times Arrow's bytes
        names = users.dictionary.slice(first, HISTORIES).to_pylist()
        start = stops[first - 1] if first else 0
        lengths = np.diff(stops[first : first + HISTORIES], prepend=start).tolist()
        rows = iter(items[start : start + sum(lengths)].to_pylist())
        for user, length in zip(names, lengths):
            yield user, [item for item in islice(rows, length) if item]


def read_ids(key: str, path: Path | str) -> list[str]:
    """The item ids of a file, one a line. key: the setting that names it."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; it has an item id a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{key}={path}: not UTF-8 text") from None
    return [line.strip() for line in lines if line.strip()]


def columns_of(source: Source, fields: Iterable[str], columns: Names) -> dict[str, str]:
    """user, item and, if there is one, time -> the name of its column."""
    fields = list(fields)
    timed = columns.get("time") or set(USUAL["time"]) & set(fields)
    keys = ("user", "item", "time") if timed else ("user", "item")
    return {key: column_of(source, key, fields, columns) for key in keys}


def column_of(source: Source, key: str, fields: Iterable[str], columns: Names) -> str:
    wanted = columns.get(key)
    fields = list(fields)
    for name in USUAL[key] if wanted is None else (wanted,):
        if fields.count(name) > 1:
            raise ValueError(f"{source}: {fields.count(name)} columns are named {name}")
        if name in fields:
            return name
    name = wanted or " or ".join(USUAL[key])
    raise ValueError(
        f"{source}: no column {name} (found: {', '.join(fields)[:200]}). Set columns.{key}=NAME"
    )


def json_lines(source: Source) -> Iterator[tuple[int, str]]:
    with source.open() as stream:
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError:
            raise ValueError(f"{source}: line {number + 1} or later: not UTF-8 text") from None


def json_object(source: Source, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{source}: line {number}: not a JSON object on one line")
    return value


def as_text(source: Source, number: int, value: Any) -> str:
    """An id as Arrow writes numbers: 1.0 is 1; a missing one is empty."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(
            f"{source}: line {number}: {value!r} is no id; histories have a list items"
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class Writer:
    """Rows of `Top.columns`, a batch at a time, in the format of the file's name."""

    def __init__(self, path: Path, format: str):
        self.format = format
        if format == ".parquet":
            self.file = pq.ParquetWriter(path, SCHEMA)
            return
        self.file = path.open("w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.file, lineterminator="\n")
        if format == ".csv":
            self.csv.writerow(SCHEMA.names)

    def write(self, top: Top) -> None:
        columns = top.columns()
        if isinstance(self.file, pq.ParquetWriter):
            self.file.write_table(pa.table(columns, SCHEMA))
            return
        values = (map(short, v) if name == "score" else v.tolist() for name, v in columns.items())
        rows = zip(*values)
        if self.format == ".csv":
            self.csv.writerows(rows)
            return
        for row in rows:
            self.file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()


def short(score: np.float32) -> float:
    """The number with the fewest digits that is this float32."""
    return float(str(score))


def check_output(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"output={path}: is a folder")
    if path.suffix not in FORMATS:
        raise ValueError(f"output={path}: must end in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output={path}: there is no folder {path.parent}")


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """The file appears when all is written."""
    check_output(path)
    partial = path.with_name(f"{path.name}.part")
    writer = Writer(partial, path.suffix)
    try:
        yield writer
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
