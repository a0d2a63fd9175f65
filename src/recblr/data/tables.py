"""Tables of events: delimited text, JSON lines, Parquet. Ids are strings, exactly as written.

Text is parsed by Arrow's readers, block by block: they are strict about the number of fields in
every row and read ids as text from the start, so `0001` and `NA` stay what they are. pandas' own
readers pad short rows in silence, and `engine="pyarrow"` infers types before it applies
`dtype=str`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from recblr.data.sources import HEAD, Source

ColumnNames = Mapping[str, str | int]

DEFAULT_COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
IDS = pa.dictionary(pa.int32(), pa.string())
BLOCK = 1 << 24  # bytes that Arrow parses at a time
MORE = 100  # unreadable rows that are counted beyond those allowed, before reading stops
SHOWN = 3  # of them that a message names
MEND = "Mend the file, or data.max_bad_rows=N leaves out up to N such rows"
_FREQUENT = ("\t", ",", ";", "|")


class RawRows(NamedTuple):
    """The readable rows of one file, and what is known of the others.

    user, item: ids as text, or dictionary-encoded text. time: any type; None for sequence files,
        whose rows are chronological per user.
    faults: (place, what is wrong) of rows that could not be split into fields.
    places: rows -> where each stands in the file, such as `line 7`; slow, for messages.
    """

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    time: pa.ChunkedArray | None
    faults: list[tuple[str, str]]
    places: Callable[[list[int]], list[str]]


def read_delimited(
    source: Source, columns: ColumnNames, separator: str | None, allowed: int, typed: bool = False
) -> RawRows:
    """Text with one row per line.

    columns: names if the first line is a header, positions from 0 if there is none.
    separator: one character or `::`; None = found from the first line.
    allowed: unreadable rows that the caller will bear; reading stops a little after that.
    typed: RecBole's `.inter` files: fields of the header are `name:type`, quotes are literal.
    """
    head = source.read(HEAD)
    first = first_line(head)
    quoted = not typed
    separator = separator or ("\t" if typed else find_separator(first, columns))
    fields = _split(first, separator, quoted)
    if typed:
        fields = [name.rsplit(":", 1)[0] for name in fields]
        columns = {
            key: DEFAULT_COLUMNS[key] if isinstance(name, int) else name
            for key, name in columns.items()
        }
    header = not all(isinstance(name, int) for name in columns.values())
    at = {key: position(source, key, name, fields, header) for key, name in columns.items()}
    if header and len(head) < HEAD and not head[len(first.encode()) :].strip():
        raise ValueError(f"{source}: nothing below the header '{first}'")
    layout = _Layout(separator, len(fields), header, quoted)
    table, ragged = _parse(source, layout, list(at.values()), allowed + MORE)
    faults = _ragged_rows(source, layout, len(ragged)) if ragged else []
    faults += [("some line", "wrong number of fields")] * (len(ragged) - len(faults))
    return RawRows(
        *(table[str(layout.step * at[key])] for key in ("user", "item", "time")),
        faults=faults,
        places=lambda rows: [f"line {line}" for line in _lines_of(source, layout, rows)],
    )


class _Layout(NamedTuple):
    """How a text file is cut into fields."""

    separator: str
    width: int  # fields per row
    header: bool
    quoted: bool

    @property
    def step(self) -> int:
        """Columns per field: text is split at one character, so `::` gives an empty one."""
        return len(self.separator)

    @property
    def columns(self) -> int:
        return self.step * (self.width - 1) + 1


def _parse(
    source: Source, layout: _Layout, wanted: list[int], limit: int
) -> tuple[pa.Table, list[Any]]:
    """The wanted fields, and the rows that have another number of fields: at most `limit`.

    Quotes are rare and make parsing slower: the first attempt ends where it meets one.
    """
    if layout.quoted:
        with contextlib.suppress(_QuoteFound):
            plain = layout._replace(quoted=False)
            return _parse_once(source, plain, wanted, limit, _Scan(stop_at_quotes=True))
    scan = _Scan(stop_at_quotes=False)
    table, ragged = _parse_once(source, layout, wanted, limit, scan)
    if layout.quoted and scan.quotes % 2:
        with source.open() as stream:
            lines = sum(1 for line in io.TextIOWrapper(stream, errors="replace") if line.strip())
        if len(table) + len(ragged) + layout.header < lines:
            raise ValueError(f"{source}: a double quote is opened and never closed")
    return table, ragged


def _parse_once(
    source: Source, layout: _Layout, wanted: list[int], limit: int, scan: _Scan
) -> tuple[pa.Table, list[Any]]:
    step = layout.step
    names = [str(i) for i in range(layout.columns)]
    between = [name for i, name in enumerate(names) if i % step]
    ragged: list[Any] = []

    def skip(row: Any) -> str:
        ragged.append(row)
        return "skip" if len(ragged) <= limit else "error"

    with source.open() as scan.stream:
        try:
            table = pacsv.read_csv(
                pa.PythonFile(scan, mode="r"),
                read_options=pacsv.ReadOptions(
                    column_names=names, block_size=BLOCK, skip_rows=int(layout.header)
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter=layout.separator[0],
                    quote_char='"' if layout.quoted else False,
                    newlines_in_values=layout.quoted,
                    invalid_row_handler=skip,
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=sorted({str(step * i) for i in wanted} | set(between)),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if len(ragged) > limit:
                faults = _ragged_rows(source, layout, SHOWN)
                raise ValueError(
                    f"{source}: {_listed(faults)}; reading stopped after {len(ragged)} unreadable "
                    f"rows. {MEND}"
                ) from None
            fault = not_utf8(source) or str(error).splitlines()[0]
            raise ValueError(f"{source}: {fault}") from None
    for name in between:
        if filled := [value for value in table[name].unique().to_pylist() if value]:
            row = pc.index(table[name], filled[0]).as_py()
            (line,) = _lines_of(source, layout, [row])
            raise ValueError(f"{source}: line {line}: a single ':' where '::' separates fields")
    return table, ragged


class _QuoteFound(Exception):
    pass


class _Scan(io.RawIOBase):
    """Passes `stream` on to Arrow and counts its quotes, or stops at the first."""

    stream: BinaryIO

    def __init__(self, stop_at_quotes: bool) -> None:
        self.stop_at_quotes, self.quotes = stop_at_quotes, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        self.quotes += block.count(b'"')
        if self.quotes and self.stop_at_quotes:
            raise _QuoteFound
        return block


def read_tokens(data: bytes) -> pa.ChunkedArray:
    """Dictionary-encoded text, one token per line; empty lines do not count."""
    return pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(column_names=["token"], block_size=BLOCK),
        parse_options=pacsv.ParseOptions(delimiter="\x1f", quote_char=False),
        convert_options=pacsv.ConvertOptions(
            column_types={"token": IDS}, strings_can_be_null=False
        ),
    )["token"]


def find_separator(first: str, columns: ColumnNames) -> str:
    """What separates the fields of a first line.

    With names: what makes all of them fields of the line. Else, or if nothing does: the most
    frequent of tab, comma, semicolon and bar outside quotes; where there is none, `::`, a space,
    or another character that is no letter, digit, or part of a number or date.
    """
    bare = re.sub(r'"[^"]*"', "", first)
    others = dict.fromkeys(re.findall(r"[^\w\s\"'.:+-]| |[\x00-\x1f]", bare))
    candidates = [*_FREQUENT, "::", *(mark for mark in others if mark.isascii())]
    names = [name for name in columns.values() if isinstance(name, str)]
    if names:
        for mark in candidates:
            if set(names) <= set(_split(first, mark, True)):
                return mark
    best = max(_FREQUENT, key=bare.count)
    if best not in bare:
        best = "::" if "::" in bare else max(candidates, key=bare.count)
    return best


def _split(line: str, separator: str, quoted: bool) -> list[str]:
    """The fields of one line."""
    fields = next(_csv_rows(io.StringIO(line, newline=""), separator, quoted), [""])
    return fields[:: len(separator)]


def _csv_rows(text: Any, separator: str, quoted: bool):
    """A csv.reader; `::` gives an empty field between any two."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return csv.reader(text, delimiter=separator[0], quoting=quoting)


def position(source: Source, key: str, name: str | int, fields: list[str], header: bool) -> int:
    """Index of a column that is given by name or, in files without header, by position."""
    if isinstance(name, int):
        if 0 <= name < len(fields):
            return name
        raise ValueError(
            f"{source}: no column {name} (the first line has {len(fields)} fields, counted from "
            f"0). Set data.columns.{key}=..."
        )
    if fields.count(name) == 1:
        return fields.index(name)
    what = "no column" if name not in fields else "more than one column"
    found = ", ".join(fields)[:200]
    way_out = "a name" + (", or for a file without header a position from 0" if header else "")
    untimed = "; a log without times has no order" if key == "time" else ""
    raise ValueError(
        f"{source}: {what} '{name}' (found: {found}). Set data.columns.{key}=... "
        f"({way_out}{untimed})"
    )


def first_line(data: bytes) -> str:
    return re.split(rb"[\r\n]", data, maxsplit=1)[0].decode(errors="replace")


def _numbered_rows(source: Source, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the rows that are not blank. Slow: for messages."""
    with source.open() as stream, contextlib.suppress(csv.Error):
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        rows = _csv_rows(text, layout.separator, layout.quoted)
        line = 0
        for row in rows:
            if row and (line or not layout.header):
                yield line + 1, row
            line = rows.line_num


def _ragged_rows(source: Source, layout: _Layout, limit: int) -> list[tuple[str, str]]:
    rows = ((n, row) for n, row in _numbered_rows(source, layout) if len(row) != layout.columns)
    faults = []
    for line, row in itertools.islice(rows, limit):
        found = -(-len(row) // layout.step)
        what = f"{found} fields, expected {layout.width} (separator {layout.separator!r})"
        if found == layout.width:
            what = "a single ':' where '::' separates fields"
        faults.append((f"line {line}", what))
    return faults


def _listed(faults: list[tuple[str, str]]) -> str:
    return "; ".join(f"{place}: {what}" for place, what in faults)


def _lines_of(source: Source, layout: _Layout, rows: list[int]) -> list[int]:
    """Line numbers of rows that have the right number of fields."""
    wanted, found = set(rows), {}
    right = (line for line, row in _numbered_rows(source, layout) if len(row) == layout.columns)
    for row, line in enumerate(right):
        if row in wanted:
            found[row] = line
    return [found[row] for row in rows]


def not_utf8(source: Source) -> str | None:
    with source.open() as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}: not UTF-8. Convert the file (iconv -f LATIN1 -t UTF-8)"
    return None


def read_parquet(source: Source, columns: ColumnNames) -> RawRows:
    try:
        file = pq.ParquetFile(pa.BufferReader(source.read()) if source.member else source.path)
        fields = file.schema_arrow.names
        at = {k: position(source, k, v, fields, False) for k, v in columns.items()}
        table = file.read(columns=[fields[p] for p in at.values()])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a readable Parquet file ({error})") from None
    if not len(table):
        raise ValueError(f"{source}: the table has no rows")
    values = (table[fields[at[key]]] for key in ("user", "item", "time"))
    return RawRows(*values, faults=[], places=lambda rows: [f"row {row + 1}" for row in rows])


def read_json_lines(source: Source, columns: ColumnNames, allowed: int) -> RawRows:
    """One JSON object per line. The values of the first line say which types to expect."""
    names = {key: str(name) for key, name in columns.items()}
    first = _parse_json(first_line(source.read(HEAD)))
    if not isinstance(first, dict):
        raise ValueError(f"{source}: line 1: not a JSON object on one line")
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
                rows.append([str(event.get(name, "")) for name in names.values()])
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


def _parse_json(line: str) -> Any:
    """The value, or None for a line that is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None
