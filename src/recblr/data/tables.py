"""Delimited text -> columns of text. Ids are strings, exactly as written.

Arrow's CSV reader parses it block by block: it is strict about the number of fields in every row
and reads ids as text from the start, so `0001` and `NA` stay what they are. pandas' own readers
pad short rows in silence, and `engine="pyarrow"` infers types before it applies `dtype=str`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from recblr.data.sources import Source

ColumnNames = Mapping[str, str | int]

DEFAULT_COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
IDS = pa.dictionary(pa.int32(), pa.string())
BLOCK = 1 << 24  # bytes that Arrow parses at a time
MORE = 100  # unreadable rows that are counted beyond those allowed, before reading stops
SHOWN = 3  # of them that a message names
MEND = "Mend the file, or data.max_bad_rows=N leaves out up to N such rows"
_FREQUENT = ("\t", ",", ";", "|")


class EmptyFile(ValueError):
    """A file without rows: an error alone, one of no consequence in a folder."""


class RawRows(NamedTuple):
    """The readable rows of one file, and what is known of the others.

    user, item: ids as text, or dictionary-encoded text. time: any type; None for sequence files,
        whose rows are chronological per user.
    faults: (place, what is wrong) of rows that could not be split into fields.
    places: rows -> where each stands in the file, such as `line 7`; slow, for messages.
    headless: read without a header, so that a first row of names would be a fault.
    """

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    time: pa.ChunkedArray | None
    faults: list[tuple[str, str]]
    places: Callable[[list[int]], list[str]]
    headless: bool = False


def read_delimited(
    source: Source,
    columns: ColumnNames,
    separator: str | None,
    quotes: bool,
    allowed: int,
    typed: bool = False,
) -> RawRows:
    """Text with one row per line.

    columns: names if the first line is a header, positions from 0 if there is none.
    separator: one character or `::`; None = found from the first line. quotes: as in CSV.
    allowed: unreadable rows that the caller will bear; reading stops a little after that.
    typed: RecBole's `.inter` files: fields of the header are `name:type`.
    """
    first, blank = first_line(source)
    separator = separator or ("\t" if typed else find_separator(first, columns))
    fields = _split(first, separator, quotes)
    if typed:
        fields = [name.rsplit(":", 1)[0] for name in fields]
    header = typed or not all(isinstance(name, int) for name in columns.values())
    at = {key: position(source, key, name, fields, header) for key, name in columns.items()}
    above = blank + 1 if header else 0
    if not first_line(source, above)[0]:
        raise EmptyFile(f"{source}: nothing below the header '{first}'")
    layout = _Layout(separator, len(fields), above, quotes)
    table, ragged = _parse(source, layout, list(at.values()), allowed + MORE)
    faults = _ragged_rows(source, layout, len(ragged)) if ragged else []
    faults += [("some line", "wrong number of fields")] * (len(ragged) - len(faults))
    return RawRows(
        *(table[str(layout.step * at[key])] for key in ("user", "item", "time")),
        faults=faults,
        places=lambda rows: [f"line {line}" for line in _lines_of(source, layout, rows)],
        headless=not header,
    )


class _Layout(NamedTuple):
    """How a text file is cut into fields."""

    separator: str
    width: int  # fields per row
    above: int  # lines up to and with the header
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
    if layout.quoted and scan.quotes:
        _check_quotes(source, layout, len(table) + len(ragged))
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
                    column_names=names, block_size=BLOCK, skip_rows=layout.above
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


def _check_quotes(source: Source, layout: _Layout, rows: int) -> None:
    """Refuse a stray quote that has swallowed lines: Arrow reads on to the next one in silence."""
    with source.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        lines = itertools.islice(text, layout.above, None)
        if rows >= sum(1 for line in lines if line.strip()):
            return
    with source.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        strict = _csv_rows(text, layout.separator, quoted=True, strict=True)
        line = 0
        try:
            for _ in strict:
                line = strict.line_num
        except csv.Error:
            raise ValueError(
                f"{source}: line {line + 1}: a double quote is opened and never closed, or closed "
                "inside a field. Write it as two, or data.quotes=false takes quotes as they are"
            ) from None


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


def _csv_rows(text: Any, separator: str, quoted: bool, strict: bool = False):
    """A csv.reader; `::` gives an empty field between any two."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return csv.reader(text, delimiter=separator[0], quoting=quoting, strict=strict)


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
    found = ", ".join(f if f == f.strip() else repr(f) for f in fields)[:200]
    way_out = "a name" + (", or for a file without header a position from 0" if header else "")
    untimed = "; a log without times has no order" if key == "time" else ""
    raise ValueError(
        f"{source}: {what} '{name}' (found: {found}). Set data.columns.{key}=... "
        f"({way_out}{untimed})"
    )


def first_line(source: Source, above: int = 0) -> tuple[str, int]:
    """The first line below `above` that is not blank, "" if there is none, and its index."""
    with source.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
        for index, line in enumerate(text):
            if index >= above and line.strip():
                return line.rstrip("\n"), index
    return "", 0


def _numbered_rows(source: Source, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the rows that are not blank. Slow: for messages."""
    with source.open() as stream, contextlib.suppress(csv.Error):
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        rows = _csv_rows(text, layout.separator, layout.quoted)
        line = 0
        for row in rows:
            if row and line >= layout.above:
                yield line + 1, row
            line = rows.line_num


def _ragged_rows(source: Source, layout: _Layout, limit: int) -> list[tuple[str, str]]:
    rows = ((n, row) for n, row in _numbered_rows(source, layout) if len(row) != layout.columns)
    faults = []
    for line, row in itertools.islice(rows, limit):
        found = -(-len(row) // layout.step)
        fields = "1 field" if found == 1 else f"{found} fields"
        what = f"{fields}, expected {layout.width} (separator {layout.separator!r})"
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
