"""Raw file -> `Interactions`. Ids are strings, exactly as the file has them.

Tables are parsed by Arrow's CSV reader: it is strict about the number of fields in every row and
reads ids as text from the start, so `0001` and `NA` stay what they are. pandas' own readers pad
short rows in silence, and `engine="pyarrow"` infers types before it applies `dtype=str`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recblr.data.times import TIME_FORMS, parse_times

Format = Literal["sequences", "inter", "table"]

DEFAULT_COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
SEPARATORS = "\t,;|"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interactions:
    """N rows of a log, in file order.

    users, items (N,) int32: codes, numbered by first appearance in the file.
    times (N,) int64 or float64, seconds for dates, the file's own unit for numbers; None for
        sequence files, whose rows are chronological per user.
    user_ids (U,), item_ids (V,) object arrays of str: code -> raw id.
    format: the format that was read, never "auto".
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: np.ndarray
    item_ids: np.ndarray
    format: Format

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Interactions:
        """The rows of a mask or an index; codes and ids stay."""
        times = None if self.times is None else self.times[rows]
        return replace(self, users=self.users[rows], items=self.items[rows], times=times)


def read_log(
    path: str | Path,
    format: Literal["auto", "sequences", "inter", "table"] = "auto",
    columns: Mapping[str, str | int] = DEFAULT_COLUMNS,
    raw_format: Format = "table",
) -> Interactions:
    """Read one file, plain or gz (recognised by content), UTF-8 with or without BOM, or Parquet.

    format: `sequences` = `user item item ...` per line; `inter` = RecBole's atomic file, with a
        typed header; `table` = delimited text or Parquet; `auto` looks at the content and takes
        `raw_format` where it is neither of the first two.
    columns: `user`, `item`, `time` -> a column's name, or its position (from 0) in a file without
        a header. `inter` fields are named without their type; positions mean its usual names.

    Raises FileNotFoundError or ValueError, one line that names `data.path`, what was found, where
    (1-based line of the file) and the way out.
    """
    path = Path(path).expanduser()
    data = _read_bytes(path)
    parquet = path.suffix == ".parquet" or data[:4] == b"PAR1"
    if format == "auto":
        format = "table" if parquet else _detect(data, raw_format)
        logger.info("%s: format=auto -> %s", path.name, format)
    if parquet:
        return _read_parquet(path, data, {**DEFAULT_COLUMNS, **columns})
    if format == "sequences":
        return _read_sequences(path, data)
    return _read_delimited(path, data, format, {**DEFAULT_COLUMNS, **columns})


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"data.path='{path}': no such file")
    if path.is_dir():
        raise ValueError(f"data.path='{path}': is a folder, a file is needed")
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"data.path='{path}': the gz file is damaged or cut short ({error}). Get it again."
            ) from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[:4] == b"PK\x03\x04":
        raise ValueError(f"data.path='{path}': is a zip archive. Unpack it and name a file in it")
    if not data.strip():
        raise ValueError(f"data.path='{path}': the file is empty")
    return data


def _first_line(data: bytes) -> str:
    return re.split(rb"[\r\n]", data, maxsplit=1)[0].decode(errors="replace")


def _detect(data: bytes, raw_format: Format) -> Format:
    if re.search(r"^[^\t]+:\w+(\t[^\t]+:\w+)+$", _first_line(data)):
        return "inter"
    return raw_format if data.translate(None, b"0123456789 \r\n") else "sequences"


def _read_sequences(path: Path, data: bytes) -> Interactions:
    """Lines `user item item ...`; the lines of one user are joined in file order."""
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    raw = np.frombuffer(data + b"\n", np.uint8)
    ends = np.flatnonzero((raw == ord(" ")) | (raw == ord("\n")))  # (tokens,): after each token
    ends_line = raw[ends] == ord("\n")
    starts_line = np.append(True, ends_line[:-1])
    faulty = (np.diff(ends, prepend=-1) == 1) | (starts_line & ends_line)
    if faulty.any():
        line = ends_line[: faulty.argmax()].sum() + 1
        raise ValueError(
            f"data.path='{path}': line {line}: expected 'user item item ...' with one space "
            "between, no space at the ends and at least one item"
        )
    try:
        tokens = _parse_csv(data.replace(b" ", b"\n"), "\x1f", 1, [0], quoted=False)[0]
    except pa.ArrowInvalid as error:
        raise ValueError(f"data.path='{path}': {_not_utf8(data) or error}") from None
    line_users, user_ids = _factorize(tokens.filter(pa.array(starts_line)))
    items, item_ids = _factorize(tokens.filter(pa.array(~starts_line)))
    per_line = np.diff(np.append(np.flatnonzero(starts_line), len(tokens))) - 1
    if len(per_line) > 1 and per_line[0] > 1 and (per_line == per_line[0]).all():
        logger.warning(
            "%s: every line has %d values, read as a user and %d items; "
            "if it is a table with a time column, set data.format=table",
            path.name,
            per_line[0] + 1,
            per_line[0],
        )
    users = np.repeat(line_users, per_line)
    return Interactions(users, items, None, user_ids, item_ids, "sequences")


def _read_delimited(
    path: Path, data: bytes, format: Format, columns: Mapping[str, str | int]
) -> Interactions:
    """`inter` (typed header, tab, no quoting) and `table` (names or positions, quotes allowed)."""
    first, quoted = _first_line(data), format == "table"
    separator = _sniff(first) if quoted else "\t"
    fields = next(_rows(first, separator, quoted), [""])
    if format == "inter":
        fields = [name.rsplit(":", 1)[0] for name in fields]
        columns = {
            key: DEFAULT_COLUMNS[key] if isinstance(name, int) else name
            for key, name in columns.items()
        }
    header = not all(isinstance(name, int) for name in columns.values())
    at = {key: _position(path, key, name, fields, header) for key, name in columns.items()}

    def where(row: int) -> str:
        rows = _numbered_rows(data, separator, quoted)
        return f"line {next(itertools.islice(rows, row + header, None))[0]}"

    body = data
    if header:
        end = re.search(rb"\r?\n|\r", data)
        body = data[end.end() :] if end else b""
        if not body.strip():
            raise ValueError(f"data.path='{path}': nothing below the header '{first}'")
    try:
        table = _parse_csv(body, separator, len(fields), list(at.values()), quoted)
    except pa.ArrowInvalid as error:
        fault = _parse_fault(data, separator, quoted, len(fields), error)
        raise ValueError(f"data.path='{path}': {fault}") from None
    if quoted and body.count(b'"') % 2 and len(table) < sum(map(bool, body.splitlines())):
        raise ValueError(f"data.path='{path}': a double quote is opened and never closed")
    values = {key: table[str(position)] for key, position in at.items()}
    return _interactions(path, values, format, where)


def _read_parquet(path: Path, data: bytes, columns: Mapping[str, str | int]) -> Interactions:
    try:
        fields = pq.read_schema(io.BytesIO(data)).names
        at = {k: _position(path, k, v, fields, True) for k, v in columns.items()}
        table = pq.read_table(io.BytesIO(data), columns=[fields[p] for p in at.values()])
    except pa.ArrowInvalid as error:
        raise ValueError(f"data.path='{path}': not a readable Parquet file ({error})") from None
    if not len(table):
        raise ValueError(f"data.path='{path}': the table has no rows")
    values = {key: table[fields[position]] for key, position in at.items()}
    return _interactions(path, values, "table", lambda row: f"row {row + 1}")


def _sniff(first: str) -> str:
    """The most frequent separator outside quotes; a space where there is none."""
    bare = re.sub(r'"[^"]*"', "", first)
    best = max(SEPARATORS, key=bare.count)
    return best if best in bare else " "


def _position(path: Path, key: str, name: str | int, fields: list[str], header: bool) -> int:
    """Index of a column that is given by name or, in files without header, by position."""
    if isinstance(name, int):
        if 0 <= name < len(fields):
            return name
        raise ValueError(
            f"data.path='{path}': no column {name} (the first line has {len(fields)} fields, "
            f"counted from 0). Set data.columns.{key}=..."
        )
    if fields.count(name) == 1:
        return fields.index(name)
    what = "no column" if name not in fields else "more than one column"
    found = ", ".join(fields)[:200]
    raise ValueError(
        f"data.path='{path}': {what} '{name}' (found: {found}). Set data.columns.{key}=... "
        "(a name, or for a file without header a position from 0)"
    )


def _parse_csv(
    body: bytes, separator: str, width: int, wanted: list[int], quoted: bool
) -> pa.Table:
    """The wanted fields as text. Raises ArrowInvalid for a row that has not `width` fields."""
    names = [str(i) for i in range(width)]
    return pacsv.read_csv(
        pa.BufferReader(body),
        read_options=pacsv.ReadOptions(column_names=names, block_size=1 << 24),
        parse_options=pacsv.ParseOptions(
            delimiter=separator,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted and b'"' in body,
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[names[i] for i in sorted(set(wanted))],
            strings_can_be_null=False,
        ),
    )


def _rows(text: str, separator: str, quoted: bool):
    """A csv.reader."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)


def _numbered_rows(data: bytes, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the rows that are not blank. Slow: for error messages."""
    rows = _rows(data.decode(errors="replace"), separator, quoted)
    line = 0
    for row in rows:
        if row:
            yield line + 1, row
        line = rows.line_num


def _parse_fault(data: bytes, separator: str, quoted: bool, width: int, error: Exception) -> str:
    """What is wrong with a table that Arrow refuses, and in which line."""
    with contextlib.suppress(csv.Error):
        for line, row in _numbered_rows(data, separator, quoted):
            if len(row) != width:
                return f"line {line}: {len(row)} fields, expected {width} (separator {separator!r})"
    return _not_utf8(data) or str(error).splitlines()[0]


def _not_utf8(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        return f"line {line}: not UTF-8. Convert the file to UTF-8"
    return None


def _factorize(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text -> (codes int32 by first appearance, ids as an object array of str)."""
    codes, ids = pd.factorize(pd.arrays.ArrowExtensionArray(column))
    return codes.astype(np.int32), np.asarray(ids, dtype=object)


def _interactions(
    path: Path,
    columns: Mapping[str, pa.ChunkedArray],
    format: Format,
    where: Callable[[int], str],
) -> Interactions:
    """Columns `user`, `item`, `time` -> codes and times. where: row -> its place, for messages."""
    coded = {}
    for key in ("user", "item"):
        text = pc.fill_null(pc.cast(columns[key], pa.string()), "")
        empty = pc.index(text, "").as_py()
        if empty >= 0:
            raise ValueError(f"data.path='{path}': {where(empty)}: the {key} id is empty")
        coded[key] = _factorize(text)
    times, bad = parse_times(columns["time"])
    if bad.any():
        row = int(bad.argmax())
        hint = " If it is a header, name data.columns.{user,item,time}." if row == 0 else ""
        raise ValueError(
            f"data.path='{path}': {where(row)}: time '{columns['time'][row]}' cannot be read "
            f"(expected {TIME_FORMS}).{hint}"
        )
    (users, user_ids), (items, item_ids) = coded["user"], coded["item"]
    return Interactions(users, items, times, user_ids, item_ids, format)
