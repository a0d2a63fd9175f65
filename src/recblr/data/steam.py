r"""Steam's review file: a Python 2 dict literal per line, `{u'username': u'Bo', u'hours': 0.1, ..`.

`ast.literal_eval` reads it and costs 36 us a line (600 characters); one regular expression over the
whole line gives the same values in 5 us, both on one core. It covers what Python 2's repr writes;
`literal_eval` reads every other line and has the last word on what is a fault. How it stays equal:

- The expression must match the line from `{` to `}`, so a review that quotes `u'product_id': u'1'`
  is consumed as one string, never as a field.
- Escaped quotes and backslashes are masked first, by two NULs (offsets stay): then a string ends at
  its next quote. Other escapes must be those of repr; lines with NULs of their own are left alone.
- Of duplicate keys a dict keeps the last, as a group in a repetition does. A wanted key with
  another type of value fits no branch.
"""

from __future__ import annotations

import ast
import re
import warnings
from array import array
from typing import BinaryIO, NamedTuple

import numpy as np

_mask = re.compile(r"\\[\\'\"]").sub
# A backslash left by the mask that opens none of \n \r \t \xhh \uhhhh \U00hhhhhh.
_odd_escape = re.compile(
    r"\\(?![nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"
).search
_WHOLE = "(?:0|[1-9][0-9]{0,14})"
_fields = re.compile(
    rf"""\{{(?:u?'(?:
    username':\ u?('[^']*'|"[^"]*")
    |product_id':\ u?'([^'\\\0]*)'
    |date':\ u?'([^'\\\0]*)'
    |products':\ ({_WHOLE})
    |(?!(?:username|product_id|date|products)')[a-z_]+':\ (?:
        -?{_WHOLE}(?:\.[0-9]{{1,15}})?|True|False|None|u?(?:'[^']*'|"[^"]*"))
    )(?:,\ |(?=\}})))+\}}""",
    re.VERBOSE,
).fullmatch


class SteamRows(NamedTuple):
    """N reviews, and the lines that are none.

    user, item, time: N strings each: display name, product id, date (`2017-12-17`).
    line (N,) int64: where each row stands in the file, from 1.
    faults: (line, what is wrong with it).
    """

    user: list[str]
    item: list[str]
    time: list[str]
    line: np.ndarray
    faults: list[tuple[int, str]]


def parse_line(line: bytes) -> tuple[str, str, str, str]:
    """`username`, `product_id`, `date`, `products` of one line; products as text, "" if missing.

    Exactly the values of `ast.literal_eval`: a name may be empty, or hold a lone surrogate, which
    UTF-8 and Arrow refuse. Raises ValueError with the reason for a line that lacks one of the first
    three, has no string there, or is no dict literal.
    """
    try:
        text = line.strip().decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    return _parse_fast(text) or _parse_any(text)


def _parse_fast(text: str) -> tuple[str, str, str, str] | None:
    """None: not covered."""
    if "\0" in text or "\n" in text or "\r" in text:
        return None
    masked = text
    if "\\" in text:
        masked = _mask("\0\0", text)
        if _odd_escape(masked):
            return None
    match = _fields(masked)
    if match is None:
        return None
    user, item, time, products = match.groups()
    if user is None or item is None or time is None:
        return None
    if "\\" in user or "\0" in user:
        user = text[slice(*match.span(1))]
        user = user.encode("latin-1", "backslashreplace").decode("unicode_escape")
    return user[1:-1], item, time, products or ""


def _parse_any(text: str) -> tuple[str, str, str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape such as \d is odd, not wrong
            record = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"no Python dict literal: {text[:60]!r}")
    for key in ("username", "product_id", "date"):
        if key not in record:
            raise ValueError(f"no '{key}'")
        if not isinstance(record[key], str):
            raise ValueError(f"'{key}' is {type(record[key]).__name__}, expected a string")
    products = str(record.get("products", ""))
    return record["username"], record["product_id"], record["date"], products


def read_steam(stream: BinaryIO, merge: bool = False, max_faults: int = 1000) -> SteamRows:
    """Read the decompressed file. Blank lines are skipped; more than `max_faults` faults end it.

    merge: the rows of RecBole's "merged" file, on which published Steam figures rest. Its converter
        joins rows on (username, products), the number of games in the account, where product_id was
        meant: most of a person's reviews become one. The newest date stays (of equal ones the
        first), at the place of the first row. The file's first line is lost. Not reproduced: the
        converter also drops lines that it fails to turn into JSON; they are read here.

    Dates are compared as text. Equal strings are stored once: 7.8 M made-up rows with 2.6 M names
    peak at 0.6 GB, and with merge (3.2 M kept) at 0.9 GB.
    """
    rows = SteamRows([], [], [], np.empty(0, np.int64), [])
    user, item, time, _, faults = rows
    line = array("q")
    stored: dict[str, str] = {}
    places: dict[tuple[str, str], int] = {}
    for number, raw in enumerate(stream, 1):
        if raw.isspace() or (merge and number == 1):
            continue
        try:
            name, product, date, games = parse_line(raw)
        except ValueError as error:
            faults.append((number, str(error)))
            if len(faults) > max_faults:
                break
            continue
        name = stored.setdefault(name, name)
        product = stored.setdefault(product, product)
        date = stored.setdefault(date, date)
        if merge:
            place = places.setdefault((name, stored.setdefault(games, games)), len(user))
            if place < len(user):
                if date > time[place]:
                    item[place], time[place], line[place] = product, date, number
                continue
        user.append(name)
        item.append(product)
        time.append(date)
        line.append(number)
    return rows._replace(line=np.array(line, dtype=np.int64))
