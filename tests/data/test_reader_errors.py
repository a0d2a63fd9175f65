"""Readers: one clear line for every bad file, and never a short log."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
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


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
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
    with pytest.raises(ValueError, match=rf"line {line}: {found} fields?, expected 3"):
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


@pytest.mark.parametrize(
    "lines",
    [
        'a,x,1,t\nb,y,2,"no end\nc,z,3,t\n',
        'a,x,1,"Foo\nb,y,2,"Bar\nc,z,3,t\n',  # an even number of quotes
        'a,x,1,t\nb,y,2,"one\n" two\n',
    ],
)
def test_stray_quotes_do_not_swallow_rows(write, lines):
    with pytest.raises(ValueError, match=r"line [234]: a double quote is opened and never closed"):
        read_log(write("user_id,item_id,timestamp,title\n" + lines))


def test_quotes_may_be_characters_like_others(write):
    path = write(HEADER + '"a,x,1\nb",5" nail,2\n')
    log = read_log(path, quotes=False)
    assert log.user_ids.to_pylist() == ['"a', 'b"'] and log.item_ids.to_pylist()[1] == '5" nail'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bz2.compress(b"1 2 3"), "compressed with bzip2"),
        (lzma.compress(b"1 2 3"), "compressed with bzip2, xz"),
        (HEADER.encode("utf-16"), "UTF-16. Convert it to UTF-8"),
        (b'[{"user_id": 1}]', "a JSON array. Write one object per line"),
        (b"log.csv".ljust(257, b"\0") + b"ustar\0", "a tar archive. Unpack it"),
    ],
    ids=["bz2", "xz", "utf-16", "json-array", "tar"],
)
def test_files_of_another_kind_are_named(write, content, said):
    with pytest.raises(ValueError, match=rf"log.csv': is {said}"):
        read_log(write(content))


def test_empty_parts_of_a_folder_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER)
    (tmp_path / "b.csv").touch()
    with pytest.raises(ValueError, match=r"every file of the folder is empty|nothing below"):
        read_log(tmp_path)
    (tmp_path / "c.csv").write_text(HEADER + "a,x,1\n")
    assert len(read_log(tmp_path)) == 1


def test_quotes_in_the_middle_and_lines_in_quotes_are_legal(write):
    log = read_log(write(HEADER + 'a,5" nail,1\n"b\nc",y,2\n'))
    assert log.user_ids.to_pylist() == ["a", "b\nc"]


@pytest.mark.parametrize("bad", ["a,x,1,\nb,y,2,\n", "a,x\n"])
def test_log_without_any_readable_row_is_refused_whatever_is_allowed(write, bad):
    for allowed in (0, 1000):
        with pytest.raises(ValueError, match=r"line 2: [24] fields.*No row can be read"):
            read_log(write(HEADER + bad), max_bad_rows=allowed)


def test_long_field_does_not_hide_the_line_of_a_bad_row(write):
    with pytest.raises(ValueError, match=r"line 3: the user id is empty"):
        read_log(write(HEADER + "x" * 200_000 + ",x,1\n,y,2\n"))


@pytest.mark.parametrize(
    "ids", [[[1], [2]], [b"\xe9", b"a"], [{"a": 1}, {"a": 2}]], ids=["lists", "bytes", "structs"]
)
def test_ids_that_are_no_text_name_file_and_type(tmp_path, ids):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"user_id": ids, "item_id": ["x", "y"], "timestamp": [1, 2]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"log.parquet': user ids of type .* cannot be text"):
        read_log(path)


def test_missing_ids_of_any_type_are_named(tmp_path):
    path = tmp_path / "log.parquet"
    for ids in ([1.5, float("nan")], pd.Categorical(["a", None])):
        frame = pd.DataFrame({"user_id": ids, "item_id": ["x", "y"], "timestamp": [1, 2]})
        frame.to_parquet(path)
        with pytest.raises(ValueError, match=r"row 2: the user id is empty"):
            read_log(path)


def test_latin_1_in_xlong_names_the_line(write):
    with pytest.raises(ValueError, match=r"log.csv': line 2: not UTF-8"):
        read_log(write(b"0\tu\t1\t2\t3\n0\tu\xe9\t1\t2\t3\n"), format="xlong")


def test_files_whose_times_differ_in_unit_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "a,x,2020-01-01\n")
    (tmp_path / "b.csv").write_text(HEADER + "a,x,1483228800000\n")
    with pytest.raises(ValueError, match=r"seconds in a.csv, milliseconds in b.csv"):
        read_log(tmp_path)


def test_bad_rows_of_all_files_count_together(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(HEADER + "a,x,1\nb,y\n")
    with pytest.raises(ValueError, match=r"a.csv': line 3.*b.csv': line 3"):
        read_log(tmp_path, max_bad_rows=1)
    assert read_log(tmp_path, max_bad_rows=2).unreadable == 2


def test_html_page_is_refused(write):
    with pytest.raises(ValueError, match=r"data.path='.*': is a web page, not a log"):
        read_log(write("\n<!DOCTYPE html>\n<html></html>\n"))


def test_home_directory_is_expanded(write, monkeypatch):
    path = write(HEADER + "a,x,1\n", "mine.csv")
    monkeypatch.setenv("HOME", os.path.dirname(path))
    assert len(read_log("~/mine.csv")) == 1
