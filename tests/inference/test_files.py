import csv
import gzip
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recblr.inference import Top, files
from recblr.inference.files import read_histories, read_ids, writing

ROWS = [  # user, item, time: mixed users, out of order, an id with a comma, a user without an item
    ("ann", "0007", 30), ("bob", "b,1", 5), ("ann", "x", 10), ("cas", "", 1), ("ann", "y", 10),
    ("bob", "7", 4),
]  # fmt: skip
BY_TIME = [("ann", ["x", "y", "0007"]), ("bob", ["7", "b,1"]), ("cas", [])]
BY_ROW = [("ann", ["0007", "x", "y"]), ("bob", ["b,1", "7"]), ("cas", [])]
NAMES = {"user": None, "item": None, "time": None}


def write(path, rows=ROWS, names=("user_id", "item_id", "timestamp"), mark=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([names, *(row[: len(names)] for row in rows)])
    return path


def read(path, **names):
    return list(read_histories(path, NAMES | names))


def test_a_table_is_grouped_by_user_and_sorted_by_time_if_it_has_one(tmp_path):
    assert read(write(tmp_path / "a.csv")) == BY_TIME
    assert read(write(tmp_path / "b.csv", names=("user_id", "item_id"))) == BY_ROW
    assert read(write(tmp_path / "c.tsv", names=("user", "item", "time"), mark="\t")) == BY_TIME
    own = write(tmp_path / "d.csv", names=("uid", "sku", "when"))
    assert read(own, user="uid", item="sku", time="when") == BY_TIME
    assert read(own, user="uid", item="sku") == BY_ROW


def test_gz_parquet_and_json_lines_give_the_same(tmp_path):
    plain = write(tmp_path / "a.csv")
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed) == BY_TIME
    frame = pd.DataFrame(ROWS, columns=["user_id", "item_id", "timestamp"])
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == BY_TIME
    frame.assign(user_id=frame.user_id.astype("category")).to_parquet(tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == BY_TIME
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    assert read(tmp_path / "a.jsonl") == BY_TIME


def test_ids_that_are_numbers_are_text(tmp_path):
    frame = pd.DataFrame({"user": [1, 1, 2], "item": [3.0, np.nan, 5.0]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.parquet", "a.jsonl"):
        assert read(tmp_path / name) == [("1", ["3"]), ("2", ["5"])]


def test_json_lines_with_items_are_histories(tmp_path):
    lines = [
        {"user": "ann", "items": ["x", 7, 8.0, None, "x"]}, {"user": 5, "items": []},
        {"user": "ann", "items": None}, {"items": ["y"], "user": "cas", "more": 1},
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert read(path) == [("ann", ["x", "7", "8", "x"]), ("5", []), ("cas", ["y"])]


@pytest.mark.parametrize("names", [("user_id", "item_id", "timestamp"), ("user_id", "item_id")])
def test_a_table_that_is_spread_over_parts_on_disk_is_the_same(tmp_path, monkeypatch, names):
    random = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", t) for u, i, t in random.integers(0, 50, (2000, 3)).tolist()]
    path = write(tmp_path / "a.csv", rows, names)
    whole = read(path)
    monkeypatch.setattr(files, "PART", 4000)
    monkeypatch.setattr(files, "BLOCK", 1000)
    parts = read(path)
    assert [user for user, _ in parts] != [user for user, _ in whole]
    assert sorted(parts) == sorted(whole)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the file is empty"),
        ("a,b\n1,2\n", r"no column user_id or user \(found: a, b\)\. Set columns\.user=NAME"),
        ("user,thing\n1,2\n", r"no column item_id or item \(found: user, thing\)"),
        ("user,item\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("user,item,time\n1,2,soon\n1,2,7\n", "time 'soon' cannot be read"),
        ('{"user": 1, "items": [2]}\n{"user": 1, "items": 3}\n', "line 2: items is 3, expected"),
        ('{"user": 1, "items": [2]}\nnothing\n', "line 2: not a JSON object on one line"),
        ('{"items": [2], "user": 1}\n{"items": [2]}\n', "line 2: user is empty"),
        ("user_id,item\n1,2\n,3\n,4\n", "user_id is empty in 2 rows"),
        ('{"user": 1, "item": 2}\n{"user": null, "item": 2}\n', "user is empty in 1 rows"),
        ('{"user": 1}\n', r"no column item_id or item \(found: user\)"),
        ('{"user": 1}\n', r"no column item_id or item \(found: user\)"),
        ('{"user": 1, "items": [2]}\n{"user": 2, "item": [3]}\n', "line 2: no items, expected a"),
        ('{"user": 1, "items": [2]}\n{"user": 2, "items": 0}\n', "line 2: items is 0, expected a"),
        ('{"user": 1, "items": [[2]]}\n', r"line 1: \[2\] is no id"),
        ('{"user": 1, "item": [2]}\n', r"line 1: \[2\] is no id; histories have a list items"),
        ('{"user": 1, "item": 2}\n{"user": 2, "items": [3]}\n', "line 2: has items, which the fi"),
        ('{"user": 1, "item": 2}\n{"user": 1, "item": 3, "time": 1}\n', "line 2: has time, which"),
        ('{"user": 1, "item": 2}\n{"user": 1, "itm": 3}\n', r"line 2: no item \(null is none\)"),
        ("user,item,item\n1,2,3\n", "2 columns are named item"),
        (b'{"user": "\xe9", "items": []}\n', "not UTF-8 text"),
        ("[" * 10**5, "no column user_id"),
        ("{" * 10**5, "line 1: not a JSON object"),
        ("PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "input.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"input={path}: ") and "\n" not in str(error.value)


def test_a_list_column_of_parquet_and_a_damaged_file_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"user": ["a"], "item": [["x", "y"]]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet: item is list.*, expected an id a row"):
        read(path)
    pd.DataFrame({"user": list("ab" * 5000), "item": map(str, range(10_000))}).to_parquet(path)
    damaged = bytearray(path.read_bytes())
    damaged[1000:1200] = bytes(200)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.parquet: "):
        read(path)


def test_a_user_on_two_lines_has_one_history_and_one_without_items_needs_no_time(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"user": "ann", "items": ["x"]}, {"user": "bob", "items": None}]
    lines += [{"user": "ann", "items": ["y", "x"]}, {"user": "cas", "items": []}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(path) == [("ann", ["x", "y", "x"]), ("bob", []), ("cas", [])]
    path.write_text("user,item,time\nann,x,2\nbob,,\nann,y,1\n")
    assert read(path) == [("ann", ["y", "x"]), ("bob", [])]


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"input=.*no such file; input=log takes all users"):
        read(tmp_path / "absent.csv")
    with pytest.raises(FileNotFoundError, match=r"deny=absent\.txt: no such file"):
        read_ids("deny", "absent.txt")
    (tmp_path / "ids.txt").write_text("\ufeff7\n\n 0008 \n")
    assert read_ids("allow", tmp_path / "ids.txt") == ["7", "0008"]


def test_rows_without_a_user_are_counted_over_the_whole_file(tmp_path, monkeypatch):
    frame = pd.DataFrame({"uid": [1, None, 2, None, None], "item": list("abcde")})
    frame.to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(files, "ROWS", 2)
    for part in (files.PART, 100):
        monkeypatch.setattr(files, "PART", part)
        with pytest.raises(ValueError, match=r"a\.parquet: uid is empty in 3 rows; fill or drop"):
            read(tmp_path / "a.parquet", user="uid")


TOP = Top(
    np.array(["ann", 'b "ö"'], object),
    np.array([["x", "y,z"], ["x", "0007"]], object),
    np.array([[0.1, -2.5], [3.0, 1.0]], np.float32),
    np.array(["model", "popularity"], object),
)


@pytest.mark.parametrize("name", ["top.csv", "top.parquet", "top.jsonl"])
def test_every_format_has_the_rows_of_the_frame(tmp_path, name):
    path = tmp_path / name
    with writing(path) as file:
        file.write(TOP)
        file.write(TOP)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name == "top.parquet":
        found = pq.read_table(path).to_pandas()
    elif name == "top.csv":
        found = pd.read_csv(path, dtype={"item_id": str})
        assert path.read_text().splitlines()[1] == "ann,1,x,0.1,model"
    else:
        found = pd.read_json(path, lines=True, dtype={"item_id": str})
    expected = pd.concat([TOP.frame()] * 2, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


@pytest.mark.parametrize("name", ["top.csv", "top.parquet", "top.jsonl"])
def test_a_file_of_nobody_is_whole_and_a_failure_leaves_none(tmp_path, name):
    with writing(tmp_path / name):
        pass
    assert (tmp_path / name).stat().st_size > 0 or name == "top.jsonl"
    (tmp_path / name).unlink()
    with pytest.raises(KeyError), writing(tmp_path / name) as file:
        file.write(TOP)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \.csv, \.parquet, \.jsonl"):
        files.check_output(tmp_path / "top.xlsx")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        files.check_output(tmp_path / "absent" / "top.csv")
