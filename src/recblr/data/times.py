"""A column of timestamps in whatever form -> numbers that sort; never through local time."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa

TIME_FORMS = "integers, floats or ISO 8601 dates"


def parse_times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 or float64 times and an (N,) mask of those that cannot be read.

    Numbers stay as they are. Dates become UTC seconds, a missing zone being UTC: int64, or float64
    where the log has fractions of a second.
    """
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text:
        for number in (pa.int64(), pa.float64()):
            with contextlib.suppress(pa.ArrowInvalid):
                return parse_times(column.cast(number))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.to_numpy()  # nulls become NaN
        values = values.astype(np.int64 if values.dtype.kind in "iu" else np.float64)
        return values, ~np.isfinite(values)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    elif not is_text and not pa.types.is_timestamp(kind):
        return np.zeros(len(column)), np.ones(len(column), bool)
    stamps = pd.to_datetime(column.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    stamps = stamps.dt.tz_localize(None).to_numpy()
    bad = np.isnat(stamps)
    if is_text and bad.any():
        numbers = np.asarray(pd.to_numeric(column.to_pandas(), errors="coerce"), np.float64)
        if np.isfinite(numbers[0]):  # a numeric log with an odd value, not one of dates
            bad = ~np.isfinite(numbers)
    seconds = stamps.astype("datetime64[s]")
    if bad.any() or (seconds == stamps).all():
        return seconds.astype(np.int64), bad
    return seconds.astype(np.int64) + (stamps - seconds) / np.timedelta64(1, "s"), bad
