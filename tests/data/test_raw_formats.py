"""Raw formats of the catalog, JSON lines, folders, separators, and rows that may be left out."""

from __future__ import annotations

import gzip
import json
import zipfile

import pandas as pd
import pytest
from test_readers import read_rows, rows

from recblr.data import tables
from recblr.data.readers import read_log

HEADER = "user_id,item_id,timestamp\n"


def test_movielens_with_double_colons(write):
    path = write("1::1193::5::978300760\n2::0661::3::978302109\n", "ratings.dat")
    expected = [("1", "1193", 978300760), ("2", "0661", 978302109)]
    assert read_rows(path, format="movielens") == expected


def test_movielens_with_tabs_and_with_a_header(write):
    path = write("196\t242\t3\t881250949\n", "u.data")
    assert read_rows(path, format="movielens") == [("196", "242", 881250949)]
    path = write("userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n", "ratings.csv")
    assert read_rows(path, format="movielens") == [("1", "31", 1260759144)]


def test_single_colon_in_a_double_colon_file_is_refused(write):
    path = write("1::1193::5::978300760\n2::6:6::3::978302109\n")
    with pytest.raises(ValueError, match=r"line 2: a single ':' where '::'"):
        read_log(path, format="movielens")
    path = write("1::1193::5::978300760\n2:x:66::3::978302109\n")
    with pytest.raises(ValueError, match=r"line 2: a single ':' where '::' separates fields"):
        read_log(path, format="movielens")


def test_gowalla_rows(write):
    line = "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
    log = read_log(write(gzip.compress(line.encode()), "a.txt.gz"), raw_format="gowalla")
    assert rows(log) == [("0", "22847", 1287532527)] and log.format == "gowalla"


def test_amazon_as_csv_and_as_json_lines(write):
    path = write("A1,0005019281,5.0,1369699200\n", "ratings_Beauty.csv")
    assert read_rows(path, raw_format="amazon") == [("A1", "0005019281", 1369699200)]
    event = {"reviewerID": "A1", "asin": "0005019281", "helpful": [0, 1], "reviewText": "a\n\u00e9"}
    event |= {"unixReviewTime": 1369699200, "reviewTime": "05 28, 2013"}
    path = write(gzip.compress((json.dumps(event) + "\n").encode()), "reviews_Beauty_5.json.gz")
    log = read_log(path, raw_format="amazon")
    assert rows(log) == [("A1", "0005019281", 1369699200)] and log.format == "amazon"


def test_raw_formats_refuse_other_columns(write):
    path = write("A1,0005019281,5.0,1369699200\n")
    with pytest.raises(ValueError, match=r"data.format=amazon has its own columns"):
        read_log(path, raw_format="amazon", columns={"user": 1, "item": 0, "time": 3})


STEAM = "{{u'username': {user}, u'product_id': u'{item}', u'date': u'{date}', u'products': {n}}}\n"


def steam(*events: tuple) -> str:
    return "".join(STEAM.format(user=u, item=i, date=d, n=n) for u, i, d, n in events)


def test_steam_lines(write):
    path = write(
        steam(("u'a\\xe9'", "7", "2017-12-17", 3), ("u'\\ud83d\\ude00'", "8", "1970-01-02", 1))
    )
    assert read_rows(path, format="steam") == [("aé", "7", 1513468800), ("😀", "8", 86400)]


def test_steam_recbole_merges_on_the_number_of_products(write):
    events = [("u'skipped'", "1", "2017-01-01", 1)]
    events += [("u'a'", "7", "2017-01-02", 3), ("u'a'", "8", "2017-01-05", 3)]
    events += [("u'a'", "9", "2017-01-01", 4)]
    got = read_rows(write(steam(*events)), format="steam-recbole")
    assert [row[:2] for row in got] == [("a", "8"), ("a", "9")]


def test_steam_line_that_is_no_literal_names_its_line(write):
    path = write(steam(("u'a'", "7", "2017-12-17", 3)) + "{'username': true}\n")
    with pytest.raises(ValueError, match=r"log.csv': line 2: .*data.max_bad_rows=N"):
        read_log(path, format="steam")
    assert len(read_log(path, format="steam", max_bad_rows=1)) == 1


def test_xlong_keeps_the_longest_row_of_each_user_over_all_files(tmp_path):
    (tmp_path / "test_corpus_total_dual.txt").write_text("0\tu1\t1,2,3\t4\t9\n1\tu2\t5,6\t7\t9,8\n")
    (tmp_path / "train_corpus_total_dual.txt").write_text(
        "0\tu1\t8,1,2,3\t4\t9\n\n1\tu2\t1,1\t1\t2\n"
    )
    log = read_log(tmp_path, format="xlong")
    assert log.times is None
    expected = {"u1": ["8", "1", "2", "3", "4"], "u2": ["5", "6", "7"]}
    for user, items in expected.items():
        assert [row[1] for row in rows(log) if row[0] == user] == items


@pytest.mark.parametrize("line", ["0\tu1\t1,2\t3", "0\tu1\t\t3\t4", "0\tu1\t1,,2\t3\t4"])
def test_malformed_xlong_row_names_file_and_line(write, line):
    path = write(f"0\tu1\t1,2\t3\t4\n{line}\n")
    with pytest.raises(ValueError, match=r"log.csv': line 2: expected 5 fields"):
        read_log(path, format="xlong")


def test_json_lines_with_any_columns(write):
    events = [{"uid": 7, "sku": "007", "ts": "2010-10-19T23:55:27Z", "x": [1]}, {}]
    events[1] = {"ts": "2010-10-20", "sku": "NA", "uid": 8, "y": {"z": None}}
    path = write("".join(json.dumps(event) + "\n" for event in events), "log.jsonl")
    columns = {"user": "uid", "item": "sku", "time": "ts"}
    expected = [("7", "007", 1287532527), ("8", "NA", 1287532800)]
    assert read_rows(path, columns=columns) == expected


def test_json_ids_of_mixed_kinds_are_read_as_they_are(write):
    lines = '{"user_id": 1, "item_id": "x", "timestamp": 5}\n'
    lines += '\n{"user_id": "b", "item_id": 2, "timestamp": 6.5}\n'
    assert read_rows(write(lines)) == [("1", "x", 5.0), ("b", "2", 6.5)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "line 3: not a JSON object"),
        ('{"user_id": [1], "item_id": 2, "timestamp": 3}', "line 3: not a JSON object"),
        ('{"item_id": 2, "timestamp": 3}', "line 3: the user id is empty"),
        ('{"user_id": 1, "item_id": 2}', "line 3: time"),
    ],
)
def test_broken_json_line_is_named_and_may_be_left_out(write, line, said):
    good = '{"user_id": 1, "item_id": 2, "timestamp": 3}\n'
    path = write(good + "\n" + line + "\n" + good)
    with pytest.raises(ValueError, match=said):
        read_log(path)
    log = read_log(path, max_bad_rows=1)
    assert len(log) == 2 and log.unreadable == 1


def test_json_lines_without_a_column_list_what_is_there(write):
    with pytest.raises(ValueError, match=r"no column 'user_id' .found: uid, item_id"):
        read_log(write('{"uid": 1, "item_id": 2, "timestamp": 3}\n'))


@pytest.mark.parametrize("mark", [*"\t,;|^~#!\x01 ", "::"])
def test_any_separator_is_found_by_names_and_by_positions(write, mark):
    lines = f"a{mark}x{mark}2010-10-19\nb{mark}y{mark}2010-10-20\n"
    expected = [("a", "x", 1287446400), ("b", "y", 1287532800)]
    path = write(HEADER.replace(",", mark) + lines)
    assert read_rows(path) == expected
    assert read_rows(write(lines), columns={"user": 0, "item": 1, "time": 2}) == expected


def test_names_decide_between_separators(write):
    path = write("user,id;item,id;time,stamp\na,1;x,2;5\n")
    columns = {"user": "user,id", "item": "item,id", "time": "time,stamp"}
    assert read_rows(path, columns=columns) == [("a,1", "x,2", 5)]


def test_separator_may_be_given(write):
    path = write("u-i-t\na-x-1\n")
    columns = {"user": "u", "item": "i", "time": "t"}
    with pytest.raises(ValueError, match="no column 'u'"):
        read_log(path, columns=columns)
    assert read_rows(path, columns=columns, separator="-") == [("a", "x", 1)]
    path = write("a,b\tx\t1\n")
    columns = {"user": 0, "item": 1, "time": 2}
    assert read_rows(path, columns=columns, separator="\\t") == [("a,b", "x", 1)]
    with pytest.raises(ValueError, match=r"data.separator='--': expected one ASCII character"):
        read_log(path, columns=columns, separator="--")


def test_folder_of_files_is_one_log_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "part-2.csv").write_text(HEADER + "a,z,9\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((HEADER + "b,x,1\na,y,2\n").encode()))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".a.csv.crc").write_bytes(b"\0")
    log = read_log(tmp_path)
    assert rows(log) == [("b", "x", 1), ("a", "y", 2), ("a", "z", 9)]
    assert sorted(log.item_ids.to_pylist()) == ["x", "y", "z"]


def test_folder_of_parquet_files(tmp_path):
    for i, user in enumerate("ba"):
        frame = pd.DataFrame({"user_id": [user], "item_id": [7], "timestamp": [i]})
        frame.astype({"user_id": "category"}).to_parquet(tmp_path / f"part-{i}.parquet")
    assert rows(read_log(tmp_path)) == [("b", "7", 0), ("a", "7", 1)]


def test_folder_names_the_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "a,x,1\n")
    (tmp_path / "b.csv").write_text("uid,item_id,timestamp\na,x,1\n")
    with pytest.raises(ValueError, match=r"b.csv': no column 'user_id'"):
        read_log(tmp_path)
    (tmp_path / "b.csv").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"files of several formats: "):
        read_log(tmp_path)


def test_zip_with_one_file_or_a_named_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as archive:
        archive.writestr("ml/", "")
        archive.writestr("ml/ratings.dat", "1::7::5::978300760\n")
    assert read_rows(str(tmp_path / "logs.zip"), format="movielens") == [("1", "7", 978300760)]
    with zipfile.ZipFile(tmp_path / "logs.zip", "a") as archive:
        archive.writestr("ml/README", "no log")
    got = read_rows(str(tmp_path / "logs.zip"), format="movielens", member="ml/ratings.dat")
    assert got == [("1", "7", 978300760)]


FAULTY = "a,x,1\nb,y\n,z,3\nc,z,soon\nd,x,4\nuser_id,item_id,timestamp\n"


def test_unreadable_rows_are_all_counted_and_the_first_named(write):
    with pytest.raises(ValueError) as error:
        read_log(write(HEADER + FAULTY))
    text = str(error.value)
    for part in (
        "line 3: 2 fields, expected 3",
        "line 4: the user id is empty",
        "line 5: time 'soon'",
    ):
        assert part in text
    assert "in all 4 unreadable rows" in text and "data.max_bad_rows=N" in text


def test_unreadable_rows_up_to_the_limit_are_left_out_and_said(write, caplog):
    log = read_log(write(HEADER + FAULTY), max_bad_rows=4)
    assert rows(log) == [("a", "x", 1), ("d", "x", 4)] and log.unreadable == 4
    assert sorted(log.user_ids.to_pylist()) == ["a", "d"]
    assert "4 unreadable rows left out" in caplog.text and "line 3: 2 fields" in caplog.text
    with pytest.raises(ValueError, match="line 3"):
        read_log(write(HEADER + FAULTY), max_bad_rows=3)


def test_reading_stops_after_a_limit_of_ragged_rows(write, monkeypatch):
    monkeypatch.setattr(tables, "MORE", 10)
    path = write(HEADER + "a,x,1\n" + "b,y\n" * 1000)
    with pytest.raises(ValueError, match=r"line 3: 2 fields.*stopped after 11 unreadable rows"):
        read_log(path)


def test_repeated_header_in_the_middle_is_an_unreadable_row(write):
    with pytest.raises(ValueError, match=r"line 3: time 'timestamp' cannot be read"):
        read_log(write(HEADER + "a,x,1\n" + HEADER + "b,y,2\n"))


def test_columns_by_number_or_a_separator_make_a_table_of_integers(write):
    path = write("1 2 978300760\n1 3 978302109\n")
    expected = [("1", "2", 978300760), ("1", "3", 978302109)]
    assert read_rows(path, columns={"user": 0, "item": 1, "time": 2}) == expected
    assert read_log(path).format == "sequences"
    path = write("7 8 9\n1 2 978300760\n")
    columns = {"user": "7", "item": "8", "time": "9"}
    assert read_rows(path, columns=columns, separator=" ") == expected[:1]


def test_blank_lines_above_a_table_do_not_count(write):
    assert read_rows(write("\n\n" + HEADER + "a,x,1\n")) == [("a", "x", 1)]
    with pytest.raises(ValueError, match="line 4: time 'soon'"):
        read_log(write("\n\n" + HEADER + "a,x,soon\nb,y,1\n"))
    assert read_rows(write('\n{"user_id": 1, "item_id": 2, "timestamp": 3}\n')) == [("1", "2", 3)]


def test_first_json_line_may_be_long(write):
    event = {"text": "x" * 100_000, "user_id": 1, "item_id": 2, "timestamp": 3}
    assert read_rows(write(json.dumps(event) + "\n")) == [("1", "2", 3)]


@pytest.mark.parametrize("quote", ["", '"'])
def test_blocks_of_any_size_give_the_same_log(write, monkeypatch, quote):
    lines = "".join(f"{quote}u{i % 7}{quote},i{i % 5},{i}\n" for i in range(300))
    path = write(HEADER + lines)
    whole = read_rows(path)
    monkeypatch.setattr(tables, "BLOCK", 256)
    assert read_rows(path) == whole and len(whole) == 300
