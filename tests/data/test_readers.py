"""Readers: every format, exact ids, every accepted oddity."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest

from recblr.data.readers import Interactions, read_log

POSITIONS = {"user": 0, "item": 1, "time": 2}
HEADER = "user_id,item_id,timestamp\n"


def rows(log: Interactions) -> list[tuple]:
    """(raw user, raw item, time) per row."""
    times = [None] * len(log) if log.times is None else log.times.tolist()
    users, items = log.user_ids.to_pylist(), log.item_ids.to_pylist()
    raw = ((users[user], items[item]) for user, item in zip(log.users, log.items, strict=True))
    return [(*ids, time) for ids, time in zip(raw, times, strict=True)]


def read_rows(path: str, **kwargs) -> list[tuple]:
    return rows(read_log(path, **kwargs))


def test_table_with_header_gives_codes_by_first_appearance(write):
    log = read_log(write(HEADER + "b,y,5\na,x,3\nb,x,4\n"))
    assert log.users.tolist() == [0, 1, 0] and log.items.tolist() == [0, 1, 1]
    assert log.user_ids.to_pylist() == ["b", "a"] and log.item_ids.to_pylist() == ["y", "x"]
    assert log.times.tolist() == [5, 3, 4] and log.format == "table"
    assert log.users.dtype == log.items.dtype == np.int32 and log.times.dtype == np.int64


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", " "])
def test_separator_is_sniffed_from_the_header(write, separator):
    text = HEADER + "a,x,1\nb,y,2\n"
    path = write(text.replace(",", separator))
    assert read_rows(path) == [("a", "x", 1), ("b", "y", 2)]


def test_separator_inside_quotes_does_not_count(write):
    path = write('"user, the first, of many";item;t\na;x;1\n')
    columns = {"user": "user, the first, of many", "item": "item", "time": "t"}
    assert read_rows(path, columns=columns) == [("a", "x", 1)]


def test_positions_read_a_file_without_header(write):
    path = write("196\t242\t3\t881250949\n186\t302\t3\t891717742\n", "u.data")
    got = read_rows(path, columns={"user": 0, "item": 1, "time": 3})
    assert got == [("196", "242", 881250949), ("186", "302", 891717742)]


def test_columns_may_stand_in_any_order_and_number(write):
    path = write("when,what,stars,who\n1,x,5,a\n2,y,4,b\n")
    columns = {"user": "who", "item": "what", "time": "when"}
    assert read_rows(path, columns=columns) == [("a", "x", 1), ("b", "y", 2)]


def test_inter_fields_are_named_without_their_type(write):
    path = write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\tx\t3\t5\n")
    log = read_log(path)
    assert log.format == "inter" and rows(log) == [("1", "x", 5)]


def test_inter_fields_can_be_renamed_or_numbered(write):
    path = write("uid:token\tpid:token\ttimestamp:float\na\tx\t1.5\n")
    columns = {"user": "uid", "item": "pid", "time": "timestamp"}
    assert read_rows(path, columns=columns) == [("a", "x", 1.5)]
    path = write("timestamp:float\titem_id:token\tuser_id:token\n9\tx\ta\n")
    assert read_rows(path, columns={"user": 2, "item": 1, "time": 0}) == [("a", "x", 9)]


def test_inter_takes_quotes_literally(write):
    path = write('user_id:token\titem_id:token\ttimestamp:float\n"a\tx\t1\nb"\ty\t2\n')
    assert read_rows(path) == [('"a', "x", 1), ('b"', "y", 2)]


def test_sequence_lines_of_one_user_are_joined_in_file_order(write):
    log = read_log(write("7 3 1\n8 3\n7 2\n"))
    assert rows(log) == [("7", "3", None), ("7", "1", None), ("8", "3", None), ("7", "2", None)]
    assert log.times is None and log.format == "sequences"


def test_user_item_pair_files_are_sequences(write):
    assert read_rows(write("1 10\n1 11\n2 10\n")) == [
        ("1", "10", None), ("1", "11", None), ("2", "10", None)
    ]  # fmt: skip


def test_explicit_sequences_may_hold_any_ids(write):
    path = write("ann B001 NA\nbob é\n")
    assert read_rows(path, format="sequences") == [
        ("ann", "B001", None), ("ann", "NA", None), ("bob", "é", None)
    ]  # fmt: skip


def test_users_with_one_or_two_events_are_read(write):
    log = read_log(write("1 5\n2 5 6\n"))
    assert np.bincount(log.users).tolist() == [1, 2]


def test_parquet_is_known_by_extension_and_by_content(tmp_path):
    frame = pd.DataFrame({"user_id": ["01", "NA"], "item_id": [7, 8], "timestamp": [3, 1]})
    for name in ("log.parquet", "log.bin"):
        frame.to_parquet(tmp_path / name)
        assert read_rows(str(tmp_path / name)) == [("01", "7", 3), ("NA", "8", 1)]


def test_parquet_times_and_categories_are_read(tmp_path):
    path = str(tmp_path / "log.parquet")
    frame = pd.DataFrame(
        {
            "user_id": pd.Categorical(["b", "a", "b"]),
            "item_id": ["x", "y", "z"],
            "timestamp": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"], utc=True),
        }
    )
    frame.to_parquet(path)
    times = (1577836800 + 86400 * np.arange(3)).tolist()
    assert read_rows(path) == list(zip("bab", "xyz", times, strict=True))
    frame["timestamp"] = frame["timestamp"].dt.date
    frame.to_parquet(path)
    assert read_log(path).times.tolist() == times


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n", "inter"),
        ("1 2 3 4\n2 5\n", "sequences"),
        ("1 2\r\n2 5", "sequences"),
        (HEADER + "1,2,3\n", "table"),
        ("user_id item_id timestamp\n1 2 3\n", "table"),
    ],
)
def test_auto_names_the_format_and_logs_it(write, caplog, content, expected):
    with caplog.at_level(logging.INFO, "recblr"):
        assert read_log(write(content)).format == expected
    assert f"format=auto -> {expected}" in caplog.text


def test_auto_falls_back_to_the_raw_format(write):
    path = write("a x y\nb x\n")
    assert read_log(path, raw_format="sequences").format == "sequences"
    with pytest.raises(ValueError, match=r"no column 'user_id'"):
        read_log(path)


def test_lines_of_equal_length_that_may_be_a_table_are_warned_about(write, caplog):
    read_log(write("1 2 978300760\n1 3 978302109\n"))
    assert "every line has 3 values" in caplog.text and "data.format=table" in caplog.text
    caplog.clear()
    read_log(write("1 2\n1 3\n"))
    assert "every line" not in caplog.text


def test_integers_with_spaces_read_as_a_table_on_request(write):
    path = write("1 2 978300760\n1 3 978302109\n")
    got = read_rows(path, format="table", columns=POSITIONS)
    assert got == [("1", "2", 978300760), ("1", "3", 978302109)]


@pytest.mark.parametrize(
    "raw", ["NA", "null", "None", "nan", "NULL", "N/A", "0001", "1.0", "1e5", "two words", " a ",
            "Zoë", "日本語", "😀", "-1", "True"],
)  # fmt: skip
def test_ids_stay_as_they_are(write, raw):
    assert read_rows(write(HEADER + f"{raw},x,1\nu,{raw},2\n")) == [(raw, "x", 1), ("u", raw, 2)]


def test_quoted_ids_may_hold_separators_quotes_and_newlines(write):
    path = write(HEADER + '"a,b","say ""x""",1\n"two\nlines",y,2\n')
    assert read_rows(path) == [("a,b", 'say "x"', 1), ("two\nlines", "y", 2)]


def test_a_quote_inside_an_unquoted_id_is_literal(write):
    assert read_rows(write(HEADER + 'a,5" nail,1\nb,y,2\n')) == [("a", '5" nail', 1), ("b", "y", 2)]


def test_leading_zeros_make_different_ids_in_sequences(write):
    log = read_log(write("1 01 1 001\n"))
    assert rows(log) == [("1", "01", None), ("1", "1", None), ("1", "001", None)]


@pytest.mark.parametrize("content", [HEADER + "a,x,1\nb,y,2\n", "1 2 3\n2 4\n"])
@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b.replace(b"\n", b"\r"),
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.rstrip(b"\n"),
        lambda b: b + b"\n\r\n\n",
        gzip.compress,
        lambda b: gzip.compress(b[:5]) + gzip.compress(b[5:]),
    ],
    ids=["CRLF", "CR", "BOM", "no-final-newline", "blank-lines-at-end", "gz", "gz-two-members"],
)
def test_encodings_of_lines_give_the_same_rows(write, content, change):
    plain = read_rows(write(content, "plain.txt"))
    assert read_rows(write(change(content.encode()), "changed.txt")) == plain


def test_gz_is_known_by_content_not_by_name(write):
    text = HEADER + "a,x,1\n"
    assert read_rows(write(text, "plain.csv.gz")) == [("a", "x", 1)]
    assert read_rows(write(gzip.compress(text.encode()), "zipped.csv")) == [("a", "x", 1)]


def test_unused_columns_may_be_empty_or_not_utf8(write):
    assert read_rows(
        write(b"user_id,item_id,timestamp,title\na,x,1,Amelie\nb,y,2,Am\xe9lie\n")
    ) == [
        ("a", "x", 1),
        ("b", "y", 2),
    ]
