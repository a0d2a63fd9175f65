"""A column of timestamps in whatever form -> numbers that sort; never through local time."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa

TIME_FORMS = "integers, floats or ISO 8601 dates"
# Unit of a number that is a date between 1973 and 5138 -> how many make a second.
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def parse_times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 or float64 times and an (N,) mask of those that cannot be read.

    Numbers stay as they are. Dates become UTC seconds, a missing zone being UTC: int64, or float64
    where the log has fractions of a second. A text column is numbers or dates, whichever more of
    its values are.
    """
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parse_text(column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.to_numpy()  # nulls become NaN
        values = values.astype(np.int64 if values.dtype.kind in "iu" else np.float64)
        return values, ~np.isfinite(values)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    elif not pa.types.is_timestamp(kind):
        return np.zeros(len(column)), np.ones(len(column), bool)
    return _seconds(column.to_pandas())


def _parse_text(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    for number in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            return parse_times(column.cast(number))
    text = column.to_pandas()
    numbers = np.isfinite(np.asarray(pd.to_numeric(text, errors="coerce"), np.float64))
    values, bad = _seconds(text)
    if numbers.sum() < (~bad).sum():
        return values, bad
    if not numbers.any():
        return np.zeros(len(column)), ~numbers
    readable, _ = _parse_text(column.filter(pa.array(numbers)))
    values = np.zeros(len(column), readable.dtype)
    values[numbers] = readable
    return values, ~numbers


def _seconds(dates: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    stamps = pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce")
    stamps = stamps.dt.tz_localize(None).to_numpy()
    bad = np.isnat(stamps)
    stamps = np.where(bad, np.datetime64(0, "s"), stamps)
    seconds = stamps.astype("datetime64[s]")
    if (seconds == stamps).all():
        return seconds.astype(np.int64), bad
    return seconds.astype(np.int64) + (stamps - seconds) / np.timedelta64(1, "s"), bad


def time_unit(times: np.ndarray) -> tuple[str, int] | None:
    """Unit that makes dates of most times (N,), and how many make a second; None if none does."""
    middle = abs(float(np.median(times)))
    for name, per_second in _UNITS.items():
        if 1e8 <= middle / per_second < 1e11:
            return name, per_second
    return None
