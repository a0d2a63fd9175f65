"""Raw log -> `Interactions`: finds the format, reads it, refuses or drops unreadable rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recblr.data.sequence_files import read_sequences
from recblr.data.sources import HEAD, Source, find_sources
from recblr.data.steam import read_steam
from recblr.data.structured import read_json_lines, read_parquet
from recblr.data.tables import (
    DEFAULT_COLUMNS,
    IDS,
    MEND,
    MORE,
    SHOWN,
    ColumnNames,
    EmptyFile,
    RawRows,
    first_line,
    read_delimited,
)
from recblr.data.times import TIME_FORMS, parse_times, time_unit
from recblr.data.xlong import read_xlong

Format = Literal[
    "sequences",
    "inter",
    "table",
    "movielens",
    "gowalla",
    "steam",
    "steam-recbole",
    "amazon",
    "xlong",
]
AnyFormat = Literal["auto", Format]

# Tables whose columns the format fixes.
_BY_POSITION: dict[str, ColumnNames] = {
    "movielens": {"user": 0, "item": 1, "time": 3},
    "gowalla": {"user": 0, "item": 4, "time": 1},
    "amazon": {"user": 0, "item": 1, "time": 3},
}
_MOVIELENS_NAMES = {"user": "userId", "item": "movieId", "time": "timestamp"}
_AMAZON_NAMES = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime"}

_NO_LOGS = {
    rb"\s*(<!doctype html|<html)": "a web page, not a log. Get the file again",
    rb"\s*\[": "a JSON array. Write one object per line (jq -c '.[]')",
    rb"(BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd)": "compressed with bzip2, xz or zstd. Unpack it",
    rb".{257}ustar": "a tar archive. Unpack it and name a file or the folder",
    rb"(\xff\xfe|\xfe\xff)": "UTF-16. Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interactions:
    """N rows of a log, in file order.

    users, items (N,) int32: codes, in no order that means anything.
    times (N,) int64 or float64, seconds for dates, the file's own unit for numbers, the same in
        all files; None for sequence files, whose rows are chronological per user.
    user_ids (U,), item_ids (V,) Arrow strings: code -> raw id; each occurs.
    format: the format that was read, never "auto".
    unreadable: rows of the file that were left out.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: pa.StringArray
    item_ids: pa.StringArray
    format: Format
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Interactions:
        """The rows of a mask or an index; codes and ids stay."""
        times = None if self.times is None else self.times[rows]
        return replace(self, users=self.users[rows], items=self.items[rows], times=times)


def read_log(
    path: str | Path,
    format: AnyFormat = "auto",
    columns: Mapping[str, str | int] = DEFAULT_COLUMNS,
    raw_format: Format = "table",
    *,
    member: str | None = None,
    separator: str | None = None,
    quotes: bool = True,
    max_bad_rows: int = 0,
) -> Interactions:
    """Read a file, a folder of files or a zip archive; text is UTF-8, plain or gz.

    format: `sequences` = `user item item ...` per line; `inter` = RecBole's atomic file, with a
        typed header; `table` = delimited text, JSON lines or Parquet; the others are raw formats of
        the catalog; `auto` looks at the content and takes `raw_format` where it is neither of the
        first two nor Parquet.
    columns: `user`, `item`, `time` -> a column's name, or its position (from 0); all positions: the
        file has no header. `inter` fields are named without their type. Raw formats have their
        own columns.
    member: which file of a zip archive. separator: one ASCII character, or `::`; None = found from
        the first line. quotes: fields may be quoted as in CSV; False: `"` is a character as others.
    max_bad_rows: unreadable rows that are left out and reported; one more is an error. Of
        `sequences` and `xlong` every line has to be readable.

    Raises FileNotFoundError or ValueError, one line that names `data.path`, what was found, where
    (1-based line of the file) and the way out.
    """
    sources = find_sources(path, member)
    columns = {**DEFAULT_COLUMNS, **columns}
    tabular = separator is not None or any(isinstance(name, int) for name in columns.values())
    if len(sources) > 1:
        sources = [source for source in sources if source.path.stat().st_size] or sources
    formats: set[Format] = {_find_format(s, format, raw_format, tabular) for s in sources}
    if len(formats) > 1:
        raise ValueError(f"data.path='{path}': files of several formats: {', '.join(formats)}")
    (found,) = formats
    if format == "auto":
        logger.info("%s: format=auto -> %s", Path(path).name, found)
    if separator is not None:
        separator = separator.replace("\\t", "\t")
        if separator != "::" and (len(separator) != 1 or not separator.isascii()):
            raise ValueError(f"data.separator={separator!r}: expected one ASCII character")
    if found not in ("inter", "table", "sequences") and columns != DEFAULT_COLUMNS:
        raise ValueError(
            f"data.columns={columns}: data.format={found} has its own columns; for others set "
            "data.format=table"
        )
    if found == "xlong":
        parts = [(sources[0], read_xlong(sources))]
    else:
        parts = []
        for source in sources:
            try:
                part = _read(source, found, columns, separator, quotes, max_bad_rows)
                parts.append((source, part))
            except EmptyFile as error:
                if len(sources) == 1:
                    raise
                logger.info("left out: %s", error)
        if not parts:
            raise ValueError(f"data.path='{path}': every file of the folder is empty")
    log = _combine(parts, found, max_bad_rows)
    del parts  # text: of 10 M rows 0.4 GB that the k-core can use
    pa.default_memory_pool().release_unused()
    return log


def _find_format(source: Source, format: AnyFormat, raw_format: Format, tabular: bool) -> Format:
    """tabular: the caller has said what only a table has, a separator or numbers of columns."""
    head = source.read(HEAD)
    if not head.strip():
        raise ValueError(f"{source}: the file is empty")
    for pattern, what in _NO_LOGS.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise ValueError(f"{source}: is {what}")
    if format != "auto":
        return format
    if head[:4] == b"PAR1" or source.path.suffix == ".parquet":
        return "table"
    if re.search(r"^[^\t]+:\w+(\t[^\t]+:\w+)+$", first_line(source)[0]):
        return "inter"
    only_numbers = not head.translate(None, b"0123456789 \r\n")
    return "sequences" if only_numbers and not tabular else raw_format


def _read(
    source: Source,
    format: Format,
    columns: ColumnNames,
    separator: str | None,
    quotes: bool,
    allowed: int,
) -> RawRows:
    if format == "sequences":
        return read_sequences(source)
    if format in ("steam", "steam-recbole"):
        return _read_steam(source, format == "steam-recbole", allowed)
    if format == "inter":
        return read_delimited(source, columns, "\t", False, allowed, typed=True)
    if source.read(4) == b"PAR1" or source.path.suffix == ".parquet":
        return read_parquet(source, columns)
    first, _ = first_line(source)
    if first.lstrip().startswith("{"):
        return read_json_lines(source, _AMAZON_NAMES if format == "amazon" else columns, allowed)
    if format in _BY_POSITION:
        columns = _BY_POSITION[format]
        if format == "movielens" and first.startswith("userId,"):
            columns = _MOVIELENS_NAMES
    return read_delimited(source, columns, separator, quotes, allowed)


def _read_steam(source: Source, merge: bool, allowed: int) -> RawRows:
    with source.open() as stream:
        rows = read_steam(stream, merge, allowed + MORE)
    columns = (pa.chunked_array([pa.array(map(_whole, v), pa.string())]) for v in rows[:3])
    faults = [(f"line {line}", what) for line, what in rows.faults]
    return RawRows(*columns, faults=faults, places=lambda at: [f"line {rows.line[r]}" for r in at])


def _whole(text: str) -> str:
    """Pairs of surrogates, which Python 2 may have written, as one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _combine(
    parts: list[tuple[Source, RawRows]], format: Format, max_bad_rows: int
) -> Interactions:
    """Rows of all files, without those that cannot be read."""
    users, user_ids = _codes("user", [(source, part.user) for source, part in parts])
    items, item_ids = _codes("item", [(source, part.item) for source, part in parts])
    starts = np.cumsum([0, *(len(part.user) for _, part in parts)])
    times: list[np.ndarray] = []
    good = np.ones(len(users), bool)
    faults: list[str] = []
    n_faults = 0
    for (source, part), start, stop in zip(parts, starts[:-1], starts[1:]):
        wrong = {"user": users[start:stop] < 0, "item": items[start:stop] < 0}
        if part.time is not None:
            values, wrong["time"] = parse_times(part.time)
            times.append(values)
        bad = np.logical_or.reduce(list(wrong.values()))
        good[start:stop] = ~bad
        n_faults += len(part.faults) + int(np.count_nonzero(bad))
        found = [f"{place}: {what}" for place, what in part.faults[:SHOWN]]
        rows = np.flatnonzero(bad)[: SHOWN - len(found)].tolist()
        for row, place in zip(rows, part.places(rows) if rows else []):
            found.append(f"{place}: {_fault(part, wrong, row)}")
        if found:
            faults.append(f"{source}: {'; '.join(found)}")
    if n_faults:
        what = "; ".join(faults[:SHOWN])
        more = f" (in all {n_faults:,} unreadable rows)" if n_faults > SHOWN else ""
        if n_faults > max_bad_rows or not good.any():
            raise ValueError(f"{what}{more}. {MEND if good.any() else 'No row can be read'}")
        logger.warning("%d unreadable rows left out: %s", n_faults, what)
    units = {
        unit[0]: source.name
        for (source, _), values in zip(parts, times)
        if len(values) and (unit := time_unit(values))
    }
    if len(units) > 1:
        found = ", ".join(f"{unit} in {name}" for unit, name in units.items())
        raise ValueError(f"data.path: times differ in unit: {found}. Convert some of the files")
    log = Interactions(
        users,
        items,
        np.concatenate(times) if times else None,
        user_ids,
        item_ids,
        format,
        n_faults,
    )
    return _only_used(log if good.all() else log.take(good))


def _fault(part: RawRows, wrong: dict[str, np.ndarray], row: int) -> str:
    for key in ("user", "item"):
        if wrong[key][row]:
            return f"the {key} id is empty"
    assert part.time is not None
    hint = "; if it is a header, name data.columns.{user,item,time}"
    hint = hint if part.headless and row == 0 else ""
    return f"time '{part.time[row]}' cannot be read (expected {TIME_FORMS}){hint}"


def _codes(
    key: str, columns: list[tuple[Source, pa.ChunkedArray]]
) -> tuple[np.ndarray, pa.StringArray]:
    """Ids of all files -> codes (N,) int32, -1 for an empty or missing id; code -> id."""
    chunks = []
    for source, column in columns:
        try:
            chunks += _encode(column).chunks
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            raise ValueError(
                f"{source}: {key} ids of type {column.type} cannot be text (UTF-8)"
            ) from None
    chunks = pa.chunked_array(chunks, IDS).unify_dictionaries().chunks
    codes = np.empty(sum(map(len, chunks)), np.int32)
    at = 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = pc.fill_null(chunk.indices, -1).to_numpy()
        at += len(chunk)
    ids = chunks[0].dictionary if chunks else pa.array([], pa.string())
    empty = pc.index(ids, "").as_py()
    if empty >= 0:
        codes[codes == empty] = -1
    return codes, ids


def _encode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Any column of plain values -> dictionary-encoded text; NaN is missing."""
    if column.type == IDS:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pa.chunked_array([pa.array(column.to_numpy(), from_pandas=True)])
    # One dictionary for all chunks: unifying a copy in each costs more than the encoding.
    encoded = column.dictionary_encode().chunks
    if not encoded:
        return pa.chunked_array([], IDS)
    indices = pa.chunked_array([chunk.indices for chunk in encoded], pa.int32()).combine_chunks()
    ids = encoded[0].dictionary.cast(pa.string())
    return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, ids)])


def _only_used(log: Interactions) -> Interactions:
    """Without ids that no row has: those of rows left out, or unused categories."""
    for key in ("user", "item"):
        codes, ids = getattr(log, f"{key}s"), getattr(log, f"{key}_ids")
        used = np.zeros(len(ids), bool)
        used[codes] = True
        if not used.all():
            renumber = np.cumsum(used, dtype=np.int32) - np.int32(1)
            changed = {f"{key}s": renumber[codes], f"{key}_ids": ids.filter(pa.array(used))}
            log = replace(log, **changed)
    return log
