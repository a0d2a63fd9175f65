"""Steam's Python 2 lines: the fast path equals `ast.literal_eval`; faults; RecBole's merge."""

from __future__ import annotations

import ast
import io
import random
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data import steam
from recblr.data.steam import parse_line, read_steam

WANTED = ("username", "product_id", "date")
LINE = (
    b"{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', "
    b"u'page_order': 0, u'date': u'2017-12-17', u'text': u\"This isn't it\", "
    b"u'early_access': False, u'page': 1}\n"
)
ROW = ("Chaos Syren", "725280", "2017-12-17", "41")
literal_eval = ast.literal_eval


def repr2(value) -> str:
    """Python 2's repr of a unicode string, number, bool, None or dict."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{repr2(k)}: {repr2(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    quote = '"' if "'" in value and '"' not in value else "'"
    short = {"\\": "\\\\", quote: "\\" + quote, "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    out = []
    for char in value:
        code = ord(char)
        if char in short:
            out.append(short[char])
        elif 32 <= code < 127:
            out.append(char)
        else:
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
            if code > 0xFFFF:
                out[-1] = f"\\U{code:08x}"
    return "u" + quote + "".join(out) + quote


def expected(line: bytes) -> tuple[str, ...] | None:
    """The row by `ast.literal_eval` alone; None for a fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = literal_eval(line.strip().decode())
        row = [record[key] for key in WANTED]
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        return None
    is_row = isinstance(record, dict) and all(isinstance(value, str) for value in row)
    return (*row, str(record.get("products", ""))) if is_row else None


def parsed(line: bytes) -> tuple[str, ...] | None:
    try:
        return parse_line(line)
    except ValueError:
        return None


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """The lines that literal_eval was called on."""
    lines = []

    def record(line):
        lines.append(line)
        return literal_eval(line)

    monkeypatch.setattr(ast, "literal_eval", record)
    return lines


DECOYS = (
    *("u'product_id': u'1'", ", u'username': u'x'", "', u'date': u'2000-01-01', u'a': u'", '"}'),
    *("\\", "\\'", "'", '"', "\n", "\\u0041", "\\x", "}", "{", "\0", "\ud83d", "\u2028", "\x85"),
)
text = st.lists(st.one_of(st.sampled_from(DECOYS), st.text(max_size=8)), max_size=5).map("".join)
number = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(-1e300, 1e300), st.booleans(), st.none()
)
value = st.one_of(text, number, st.dictionaries(text, text, max_size=2))
record = st.fixed_dictionaries(
    {},
    optional={
        "username": text,
        "product_id": st.one_of(st.integers(0, 10**6).map(str), text),
        "date": st.one_of(st.dates().map(str), text),
        "products": st.integers(0, 9999),
        "text": text,
        "hours": st.floats(0, 1e4).map(lambda hours: round(hours, 1)),
        "early_access": st.booleans(),
        "anything": value,
    },
)


@settings(max_examples=150)
@given(record, st.randoms(use_true_random=False))
def test_every_record_reads_as_literal_eval_reads_it(fields, rng):
    pairs = list(fields.items())
    rng.shuffle(pairs)
    line = repr2(dict(pairs)).encode() + b"\n"
    assert parsed(line) == expected(line)
    if all(isinstance(fields.get(key), str) for key in WANTED):
        products = str(fields.get("products", ""))
        assert parsed(line) == (*(fields[key] for key in WANTED), products)


BOUNDARIES = [*(found.start() for found in re.finditer(rb"u'\w+':", LINE)), len(LINE) - 2]
PIECES = (
    *("u'username': ", "'product_id': ", "u'date': ", "u'text': ", "u'products': ", "u'a': "),
    *("u'a'", "'\\\\'", 'u"b\'"', "b'c'", "1", "1L", "007", "-3.5", "'d' 'e'", "['f']", "u'g\\n'"),
    *(", ", ", ", ", ", "}", "{", "'", '"', "\\", "\\d", "\\'", " ", "\r", "\0", "é", ": "),
)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.one_of(st.sampled_from(BOUNDARIES), st.integers(0, len(LINE))),
    st.sampled_from([0, 0, 0, 1, 2, 20]),
)
def test_damaged_lines_read_as_literal_eval_reads_them(noise, at, cut):
    line = LINE[:at] + noise.encode() + LINE[at + cut :]
    assert parsed(line) == expected(line)


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("at", ["username", "text", "date"])
def test_every_escape_reads_as_literal_eval_reads_it(at, quote):
    for char in map(chr, range(256)):
        for tail in ("", "4", "41", "0041", "00000041", "00110000", "{DIGIT ONE}"):
            fields = {key: f"u'{key}'" for key in (*WANTED, "text")}
            fields[at] = f"u{quote}a\\{char}{tail}{quote}"
            line = "{" + ", ".join(f"u'{k}': {v}" for k, v in fields.items()) + "}\n"
            assert parsed(line.encode()) == expected(line.encode()), line


@pytest.mark.parametrize(
    "more, row",
    [
        (r"u'text': u'it\'s \"\\'", ROW),
        (r"""u'text': u'\\\', u\'product_id\': u\'1\', \'\\'""", ROW),
        ("""u'text': u", u'product_id': u'1', 'date': '2000-01-01'}" """, ROW),
        ("u'product_id': u'1'", ("Chaos Syren", "1", "2017-12-17", "41")),
        ("u'username': u\"O'Neil\"", ("O'Neil", *ROW[1:])),
        ("u'username': u'\\u041f\\xe9\\U0001f600\\n'", ("Пé😀\n", *ROW[1:])),
        ("u'username': u'caf\u00e9 \\\\П\\u041f'", ("café \\ПП", *ROW[1:])),
        ("u'username': u'\\ud83d'", ("\ud83d", *ROW[1:])),
        ("u'username': u''", ("", *ROW[1:])),
        ("u'user\\x6eame': u'hidden'", ("hidden", *ROW[1:])),
        ("'username' : 'a' 'b'", ("ab", *ROW[1:])),
        ("'date': ('2018-01-01')", (*ROW[:2], "2018-01-01", "41")),
        ("'products': 7", (*ROW[:3], "7")),
        ("'products': 0x10", (*ROW[:3], "16")),
        ("u'a': {u'product_id': u'1'}, 'b': [1, ('c',)], 3: 1e5, 'd': -3.5", ROW),
        ("u'a': '\\d'", ROW),
        ("'username': b'bytes'", None),
        ("'username': 5", None),
        ("'date': None", None),
        ("'a': 1L", None),
        ("'a': 007", None),
        ("'a': true", None),
        ("'a': u'\\x4'", None),
        ("'a': '\0'", None),
        ("'a': ur'b'", None),
        ("'a': 'x\ry'", None),
        ("'a': 'x\ny'", None),
        ("'a': 1\n", ROW),
        ("'a': 1'b': 2", None),
        ("'a': u'x''b': 2", None),
        ("'a': 1,", ROW),
        ("'a': 1, ", ROW),
        ("'a': 1,, ", None),
        ("{}: 1", None),
    ],
)
def test_a_nasty_pair_at_the_end(more, row):
    line = LINE.strip().removesuffix(b"}") + b", " + more.encode() + b"}\n"
    assert parsed(line) == expected(line) == row


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{}", "no 'username'"),
        (LINE.replace(b"u'product_id': u'725280', ", b""), "no 'product_id'"),
        (
            b"{'username': 'a', 'date': 'b', 'text': u\"u'product_id': u'1'\"}",
            "no 'product_id'",
        ),
        (LINE.replace(b"u'2017-12-17'", b"20171217"), "'date' is int, expected a string"),
        (LINE[:60], "no Python dict literal: \"{u'username': u'Chaos Syren', u'hours'"),
        (b'{"username": "a", "product_id": "1", "date": "b", "early_access": true}', "no Python"),
        (b"['username', 'product_id', 'date']", "no Python dict literal: \"['username'"),
        (b"{'username', 'product_id', 'date'}", "no Python dict literal"),
        (b"username,product_id,date", "no Python dict literal: 'username,product_id,date'"),
        (b"-" * 100_000 + b"1", "no Python dict literal"),
        (LINE.replace(b"Chaos", b"Cha\xe9s"), "not UTF-8"),
        (LINE.replace(b"isn't", b"isn\xe9t"), "not UTF-8"),
    ],
)
def test_a_fault_says_what_is_wrong(line, reason):
    with pytest.raises(ValueError) as error:
        parse_line(line)
    assert str(error.value).startswith(reason)


def test_lines_that_python_2_wrote_need_no_literal_eval(evaluated):
    rng = random.Random(0)
    words = ["it's", '"epic"', "great", "fun\n", "\u041f\u043e", "\U0001f600", "caf\u00e9", "a\\b"]
    lines = []
    for _ in range(500):
        fields = {
            "username": rng.choice(words),
            "product_id": str(rng.randrange(10**6)),
            "date": "2017-12-17",
            "text": " ".join(rng.choices(words, k=rng.randrange(100))),
            "hours": rng.randrange(10**4) / 10,
            "early_access": rng.random() < 0.1,
            "found_funny": rng.choice([None, 3]),
        }
        keys = rng.sample(list(fields), len(fields))
        lines.append(repr2({key: fields[key] for key in keys}).encode() + b"\n")
    rows = [parse_line(line) for line in lines]
    assert evaluated == []
    assert rows == [expected(line) for line in lines]
    assert parse_line(LINE) == parse_line(LINE.replace(b"\n", b"\r\n")) == ROW and not evaluated


def test_odd_lines_go_to_literal_eval(evaluated):
    line = LINE.replace(b": 41", b":41")
    assert parse_line(line) == ROW and evaluated == [line.decode().strip()]


def test_an_odd_escape_gives_no_warning():
    line = LINE.replace(b"isn't", rb"\d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_line(line) == ROW


def test_rows_keep_their_line_and_share_equal_strings():
    data = LINE + b"\n \r\n" + b"broken\n" + LINE.replace(b"725280", b"10")
    rows = read_steam(io.BytesIO(data))
    assert rows.user == ["Chaos Syren"] * 2 and rows.item == ["725280", "10"]
    assert rows.time == ["2017-12-17"] * 2 and rows.line.tolist() == [1, 5]
    assert rows.line.dtype == np.int64
    assert rows.faults == [(4, "no Python dict literal: 'broken'")]
    assert rows.user[0] is rows.user[1] and rows.time[0] is rows.time[1]


def test_reading_stops_after_the_limit_of_faults():
    data = LINE + b"bad\n" * 3 + LINE
    assert read_steam(io.BytesIO(data), max_faults=3).line.tolist() == [1, 5]
    rows = read_steam(io.BytesIO(data), max_faults=2)
    assert rows.line.tolist() == [1] and [line for line, _ in rows.faults] == [2, 3, 4]
    assert [line for line, _ in read_steam(io.BytesIO(data), max_faults=0).faults] == [2]


def test_an_empty_file_has_no_rows():
    rows = read_steam(io.BytesIO(b""))
    assert (rows.user, rows.item, rows.time, rows.faults) == ([], [], [], [])
    assert rows.line.shape == (0,)


def review(user: str, item: str, date: str, products: int | None = None) -> bytes:
    fields = {"username": user, "product_id": item, "date": date, "products": products}
    if products is None:
        del fields["products"]
    return repr2(fields).encode() + b"\n"


def test_merge_keeps_the_newest_of_a_user_and_a_number_of_games_where_it_was_first_met():
    lines = [
        review("a", "1", "2019-01-01", 5),  # the first line is lost
        review("a", "2", "2017-01-01", 5),
        review("b", "3", "2017-01-01", 5),
        review("a", "4", "2017-01-01", 5),  # same date: the first stays
        review("a", "5", "2016-01-01", 6),  # another number of games: another key
        review("a", "6", "2017-02-01", 5),  # newer
        review("a", "7", "2017-01-15", 5),  # newer than the first, older than the kept
        review("a", "8", "2015-01-01"),
        review("a", "9", "2015-01-02"),  # missing = missing
        b"bad\n",
        review("b", "2", "2017-01-01", 5),
    ]
    rows = read_steam(io.BytesIO(b"".join(lines)), merge=True)
    assert rows.user == ["a", "b", "a", "a"]
    assert rows.item == ["6", "3", "5", "9"]
    assert rows.time == ["2017-02-01", "2017-01-01", "2016-01-01", "2015-01-02"]
    assert rows.line.tolist() == [6, 3, 5, 9]
    assert [line for line, _ in rows.faults] == [10]
    assert read_steam(io.BytesIO(b"".join(lines))).item == [*"123456789", "2"]


def test_merge_skips_the_first_line_whatever_it_is():
    rows = read_steam(io.BytesIO(b"bad\n" + LINE), merge=True)
    assert rows.line.tolist() == [2] and not rows.faults


def test_the_module_evaluates_literals_only():
    with open(steam.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}
