"""Readers: one clear line for every bad file, and never a short log."""

from __future__ import annotations

import gzip
import io
import os
import zipfile

import pandas as pd
import pytest

from recblr.data.readers import read_log

POSITIONS = {"user": 0, "item": 1, "time": 2}
HEADER = "user_id,item_id,timestamp\n"


def test_positions_on_a_file_with_header_are_not_silent(write):
    with pytest.raises(ValueError, match=r"line 1: time 'timestamp' .* header"):
        read_log(write(HEADER + "a,x,1\n"), columns=POSITIONS)


def test_missing_column_names_what_was_found_and_the_way_out(write):
    path = write("uid,item,ts\na,x,1\n", "x.csv")
    columns = {"user": "uid", "item": "item", "time": "timestamp"}
    with pytest.raises(ValueError) as error:
        read_log(path, columns=columns)
    assert str(error.value).startswith(
        f"data.path='{path}': no column 'timestamp' (found: uid, item, ts). "
        "Set data.columns.time=..."
    )


def test_log_without_times_is_refused(write):
    path = write("userID\tartistID\tweight\n2\t51\t13883\n")
    with pytest.raises(
        ValueError, match=r"no column 'timestamp' \(found: userID, artistID, weight"
    ):
        read_log(path, columns={"user": "userID", "item": "artistID"})


def test_column_named_twice_is_refused(write):
    with pytest.raises(ValueError, match=r"more than one column 'user_id'"):
        read_log(write("user_id,user_id,item_id,timestamp\na,b,x,1\n"))


@pytest.mark.parametrize("position", [3, -1])
def test_position_outside_the_file_is_refused(write, position):
    columns = {**POSITIONS, "time": position}
    with pytest.raises(ValueError, match=rf"no column {position} \(the first line has 3 fields"):
        read_log(write("a,x,1\n"), columns=columns)


def test_missing_file(tmp_path):
    path = tmp_path / "none.csv"
    with pytest.raises(FileNotFoundError, match=r"data.path='.*none.csv': no such file"):
        read_log(path)


def test_empty_folder(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(ValueError, match=r"data.path='.*': the folder has no files"):
        read_log(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", gzip.compress(b"")])
def test_empty_file(write, content):
    with pytest.raises(ValueError, match=r"data.path='.*': the file is empty"):
        read_log(write(content))


@pytest.mark.parametrize("content", [HEADER, HEADER.strip(), HEADER + "\n\r\n"])
def test_header_only(write, content):
    with pytest.raises(ValueError, match=r"data.path='.*': nothing below the header 'user_id,"):
        read_log(write(content))


def test_header_only_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"user_id": [], "item_id": [], "timestamp": []}).to_parquet(path)
    with pytest.raises(ValueError, match=r"data.path='.*': the table has no rows"):
        read_log(path)


@pytest.mark.parametrize("cut", [slice(None, -9), slice(None, 40), slice(None, 12)])
def test_truncated_gz_never_gives_a_short_log(write, cut):
    whole = gzip.compress((HEADER + "".join(f"u{i},x{i},{i}\n" for i in range(500))).encode())
    with pytest.raises(ValueError, match=r"data.path='.*': the gz file is damaged or cut short"):
        read_log(write(whole[cut], "log.csv.gz"))


def test_damaged_gz(write):
    whole = bytearray(gzip.compress(b"1 2 3\n" * 500))
    whole[-6] ^= 255  # the checksum
    with pytest.raises(ValueError, match=r"damaged or cut short"):
        read_log(write(bytes(whole)))


def zipped(members: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


def test_zip_with_several_files_lists_them(write):
    path = write(zipped({"ml/": "", "ml/ratings.csv": HEADER, "ml/README": "x"}))
    with pytest.raises(ValueError, match=r"several files .found: ml/ratings.csv, ml/README.. Set"):
        read_log(path)
    with pytest.raises(ValueError, match=r"no file 'ratings.csv' in the archive"):
        read_log(path, member="ratings.csv")


def test_zip_slip_writes_nothing(write, tmp_path):
    path = write(zipped({"../../evil.csv": HEADER + "a,x,1\n"}), "logs.zip")
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(read_log(path)) == 1
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("cut", [slice(None, -30), slice(None, 60)])
def test_truncated_zip(write, cut):
    text = HEADER + "".join(f"u{i},x{i},{i}\n" for i in range(500))
    with pytest.raises(ValueError, match=r"data.path='.*the zip file is damaged or cut short"):
        read_log(write(zipped({"log.csv": text})[cut]))


def test_damaged_zip(write):
    whole = bytearray(zipped({"log.csv": HEADER + "a,x,1\n" * 500}))
    whole[60] ^= 255
    with pytest.raises(ValueError, match=r"the zip file is damaged or cut short"):
        read_log(write(bytes(whole)))


def test_broken_parquet(write):
    with pytest.raises(ValueError, match=r"data.path='.*': not a readable Parquet file"):
        read_log(write(b"PAR1 and no more"))


@pytest.mark.parametrize(
    ("lines", "line", "found"),
    [
        ("a,x,1\nb,y\nc,z,3\n", 3, 2),
        ("a,x,1\nb,y,2,9\n", 3, 4),
        ("a,x,1\n\nb\n", 4, 1),
        ('"a\nb",x,1\nb,y\n', 4, 2),
    ],
)
def test_ragged_row_names_the_line(write, lines, line, found):
    with pytest.raises(ValueError, match=f"line {line}: {found} fields, expected 3"):
        read_log(write(HEADER + lines))


def test_ragged_row_far_down_is_found(write):
    lines = [f"u{i},x{i},{i}\n" for i in range(300_000)]
    lines[250_000] = "u,x\n"
    with pytest.raises(ValueError, match=r"line 250002: 2 fields"):
        read_log(write(HEADER + "".join(lines)))


@pytest.mark.parametrize(("column", "key"), [(0, "user"), (1, "item")])
def test_empty_id_names_the_line(write, column, key):
    cells = ["b", "y", "2"]
    cells[column] = ""
    with pytest.raises(ValueError, match=f"line 3: the {key} id is empty"):
        read_log(write(HEADER + "a,x,1\n" + ",".join(cells) + "\n"))


def test_null_id_in_parquet_names_the_row(tmp_path):
    path = tmp_path / "log.parquet"
    frame = pd.DataFrame({"user_id": ["a", None], "item_id": ["x", "y"], "timestamp": [1, 2]})
    frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"row 2: the user id is empty"):
        read_log(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [("1 2\n3  4\n", 2), ("1 2\n3 4 \n", 2), (" 1 2\n", 1), ("1 2\n3\n", 2), ("1 2\n\n3 4\n", 2)],
)
def test_sequence_line_with_an_empty_id_or_no_item_names_the_line(write, content, line):
    with pytest.raises(ValueError, match=f"line {line}: expected 'user item item ...'"):
        read_log(write(content))


@pytest.mark.parametrize("format", ["table", "sequences"])
def test_text_that_is_not_utf8_names_the_line(write, format):
    content = (HEADER + "a,x,1\n").encode() + b"b\xe9,y,2\n"
    if format == "sequences":
        content = b"a x y\nb x\nb\xe9 x\n"
    with pytest.raises(ValueError, match=r"data.path='.*': line 3: not UTF-8"):
        read_log(write(content), format=format)


def test_quote_that_is_never_closed_does_not_swallow_rows(write):
    with pytest.raises(ValueError, match=r"a double quote is opened and never closed"):
        read_log(write(HEADER + "a,x,1,\n".replace(",\n", "\n") + 'b,y,"2\nc,z,3\n'))


def test_html_page_is_refused(write):
    with pytest.raises(ValueError, match=r"data.path='.*': is a web page, not a log"):
        read_log(write("\n<!DOCTYPE html>\n<html></html>\n"))


def test_home_directory_is_expanded(write, monkeypatch):
    path = write(HEADER + "a,x,1\n", "mine.csv")
    monkeypatch.setenv("HOME", os.path.dirname(path))
    assert len(read_log("~/mine.csv")) == 1
