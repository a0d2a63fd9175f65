"""Timestamps: exact numbers from every form, and one clear line for what cannot be read."""

import re
import time

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
    assert read_log(write(HEADER + text)).times.tolist() == [1577836800.25, 1577836800.0]


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


def test_null_time_in_parquet_names_the_row(tmp_path):
    path = str(tmp_path / "log.parquet")
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": ["x"] * 2, "timestamp": [1, None]})
    frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"row 2: time 'None'|row 2: time 'nan'"):
        read_log(path)
    frame.assign(timestamp=[True, False]).to_parquet(path)
    with pytest.raises(ValueError, match=r"row 1: time 'True' cannot be read"):
        read_log(path)
