"""Timestamps: exact numbers from every form, and one clear line for what cannot be read."""

import re
import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recblr.data.readers import read_log

HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2010-10-19T23:55:27Z", 1287532527),
        ("2010-10-19T23:55:27", 1287532527),
        ("2010-10-19 23:55:27", 1287532527),
        ("2010-10-19 23:55:27 UTC", 1287532527),
        ("2010-10-20T01:55:27+02:00", 1287532527),
        ("2017-12-17", 1513468800),
        ("1969-12-31T23:59:58Z", -2),
        ("978300760", 978300760),
        ("1700000000123", 1700000000123),
        ("16777217", 16777217),  # not a float32
        ("9007199254740993", 9007199254740993),  # not a float64
    ],
)
def test_times_are_exact_integers(write, text, seconds):
    times = read_log(write(HEADER + f"a,x,{text}\n")).times
    assert times.dtype == np.int64 and times.tolist() == [seconds]


def test_float_times_stay_floats(write):
    times = read_log(write(HEADER + "a,x,1.5\na,y,9.78300760E8\na,z,3\n")).times
    assert times.dtype == np.float64 and times.tolist() == [1.5, 978300760.0, 3.0]


def test_fractions_of_a_second_keep_their_order(write):
    text = "a,x,2020-01-01T00:00:00.25Z\na,y,2020-01-01T00:00:00Z\n"
    assert read_log(write(HEADER + text)).times.tolist() == [1577836800250000, 1577836800000000]
    text = "a,x,2020-01-01T00:00:00.000000002Z\na,y,2020-01-01T00:00:00.000000001Z\n"
    assert read_log(write(HEADER + text)).times.tolist() == [1577836800 * 10**9 + n for n in (2, 1)]


def test_dates_do_not_depend_on_the_local_time_zone(write, monkeypatch):
    path = write(HEADER + "a,x,2021-03-28 02:30:00\n")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert read_log(path).times.tolist() == [1616898600]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("lines", "line", "value"),
    [
        ("a,x,1\nb,y,\n", 3, ""),
        ("a,x,1\nb,y,2\nc,z,nan\n", 4, "nan"),
        ("a,x,1\nb,y,inf\n", 3, "inf"),
        ("a,x,1.5\nb,y,soon\n", 3, "soon"),
        ("a,x,2020-01-01\nb,y,2020-13-01\n", 3, "2020-13-01"),
        ("a,x,2020-01-01\nb,y,NaT\n", 3, "NaT"),
        ("a,x,1\n\n\nb,y,?\n", 5, "?"),
        ('"a\nb",x,1\nb,y,?\n', 4, "?"),
    ],
)
def test_unreadable_time_names_the_line_and_the_value(write, lines, line, value):
    path = write(HEADER + lines)
    with pytest.raises(ValueError, match=re.escape(f"line {line}: time '{value}'")) as error:
        read_log(path)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_blanks_around_times_do_not_count(write):
    assert read_log(write(HEADER + "a,x, 10\na,y,20 \n")).times.tolist() == [10, 20]
    assert read_log(write(HEADER + "a,x, 1e3 \n")).times.tolist() == [1000.0]
    times = read_log(write(HEADER + "a,x, 2020-01-01\na,y, soon\n"), max_bad_rows=1).times
    assert times.tolist() == [1577836800]


def test_good_rows_keep_exact_times_beside_a_bad_one(write):
    lines = "a,x,9007199254740993\na,y,soon\na,z,9007199254740992\n"
    times = read_log(write(HEADER + lines), max_bad_rows=1).times
    assert times.dtype == np.int64 and times.tolist() == [9007199254740993, 9007199254740992]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array([1600000000123456789, None, 1600000000123456790], dtype="Int64"), None),
        (pd.Categorical(["5", "7", "6"]), [5, 7, 6]),
        (np.array([2**63, 1, 2**64 - 1], np.uint64), [2.0**63, 1.0, 2.0**64]),
        ([Decimal("1.5"), Decimal("2.5"), Decimal("0.5")], [1.5, 2.5, 0.5]),
    ],
    ids=["null", "categories", "uint64", "decimal"],
)
def test_typed_times_of_parquet(tmp_path, column, expected):
    frame = pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["x"] * 3, "timestamp": column})
    frame.to_parquet(tmp_path / "log.parquet")
    times = read_log(tmp_path / "log.parquet", max_bad_rows=1).times
    assert times.tolist() == (expected or [1600000000123456789, 1600000000123456790])


def test_null_time_in_parquet_names_the_row(tmp_path):
    path = str(tmp_path / "log.parquet")
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": ["x"] * 2, "timestamp": [1, None]})
    frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"row 2: time 'None'|row 2: time 'nan'"):
        read_log(path)
    frame.assign(timestamp=[True, False]).to_parquet(path)
    with pytest.raises(ValueError, match=r"row 1: time 'True' cannot be read"):
        read_log(path)
