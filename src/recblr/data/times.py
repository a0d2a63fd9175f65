"""A column of timestamps in whatever form -> numbers that sort; never through local time."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

TIME_FORMS = "integers, floats or ISO 8601 dates"
INTEGER, NUMBER = r"^-?[0-9]+$", r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
# Unit of a number that is a date between 1973 and 5138 -> how many make a second.
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def parse_times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 or float64 times and an (N,) mask of those that cannot be read.

    Numbers stay as they are: int64 if all fit, else float64. Dates become int64 UTC, a missing zone
    being UTC: seconds, or micro- or nanoseconds where the log has such fractions. A text column
    is numbers or dates, whichever more of its values are; blanks around them do not count.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parse_text(column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _numbers(column)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    elif not pa.types.is_timestamp(kind):
        return np.zeros(len(column)), np.ones(len(column), bool)
    return _dates(column.to_pandas())


def _numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    missing = column.is_null().to_numpy()
    column = pc.fill_null(column, 0)
    if not pa.types.is_floating(column.type):
        with contextlib.suppress(pa.ArrowInvalid):  # does not fit
            return column.cast(pa.int64()).to_numpy(), missing
    values = column.cast(pa.float64(), safe=False).to_numpy()
    return values, missing | ~np.isfinite(values)


def _parse_text(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    for number in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            return _numbers(column.cast(number))
    column = pc.call_function("utf8_trim_whitespace", [column])
    zone = pc.ReplaceSubstringOptions(" UTC", "Z")  # as BigQuery writes it
    column = pc.call_function("replace_substring", [column], zone)
    numeric = _match(column, NUMBER)
    values, bad = _dates(column.to_pandas())
    if numeric.sum() < (~bad).sum():
        return values, bad
    text = column.filter(pa.array(numeric))
    integers = _match(text, INTEGER).all()
    readable = None
    if integers:
        with contextlib.suppress(pa.ArrowInvalid):  # beyond int64
            readable = text.cast(pa.int64()).to_numpy()
    if readable is None:
        readable = text.cast(pa.float64()).to_numpy()
    values = np.zeros(len(column), readable.dtype)
    values[numeric] = readable
    return values, ~numeric


def _match(text: pa.ChunkedArray, pattern: str) -> np.ndarray:
    options = pc.MatchSubstringOptions(pattern)
    return pc.call_function("match_substring_regex", [text], options).to_numpy()


def _dates(dates: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    stamps = pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce")
    stamps = stamps.dt.tz_localize(None).to_numpy()
    bad = np.isnat(stamps)
    stamps = np.where(bad, np.datetime64(0, "s"), stamps)
    for unit in ("s", "us"):
        exact = stamps.astype(f"datetime64[{unit}]")
        if (exact == stamps).all():
            return exact.astype(np.int64), bad
    return stamps.astype("datetime64[ns]").astype(np.int64), bad


def time_unit(times: np.ndarray) -> tuple[str, int] | None:
    """Unit that makes dates of most times (N,), and how many make a second; None if none does."""
    middle = abs(float(np.median(times)))
    for name, per_second in _UNITS.items():
        if 1e8 <= middle / per_second < 1e11:
            return name, per_second
    return None
