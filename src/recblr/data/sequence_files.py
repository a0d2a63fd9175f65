"""Sequence files: `user item item ...` per line, oldest first, without times."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from recblr.data.sources import Source
from recblr.data.tables import RawRows, not_utf8, read_tokens

logger = logging.getLogger(__name__)


def read_sequences(source: Source) -> RawRows:
    """Lines `user item item ...`; the lines of one user are joined in file order."""
    data = source.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    raw = np.frombuffer(data + b"\n", np.uint8)
    ends = np.flatnonzero((raw == ord(" ")) | (raw == ord("\n")))  # (tokens,): after each token
    ends_line = raw[ends] == ord("\n")
    starts_line = np.append(True, ends_line[:-1])
    faulty = (np.diff(ends, prepend=-1) == 1) | (starts_line & ends_line)
    if faulty.any():
        line = ends_line[: faulty.argmax()].sum() + 1
        raise ValueError(
            f"{source}: line {line}: expected 'user item item ...' with one space between, no "
            "space at the ends and at least one item"
        )
    try:
        tokens = read_tokens(data.replace(b" ", b"\n"))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: {not_utf8(source) or error}") from None
    per_line = np.diff(np.append(np.flatnonzero(starts_line), len(tokens))) - 1
    if len(per_line) > 1 and per_line[0] > 1 and (per_line == per_line[0]).all():
        logger.warning(
            "%s: every line has %d values, read as a user and %d items; "
            "if it is a table with a time column, set data.format=table",
            source.name,
            per_line[0] + 1,
            per_line[0],
        )
    users = tokens.filter(pa.array(starts_line)).take(np.repeat(np.arange(len(per_line)), per_line))
    return RawRows(users, tokens.filter(pa.array(~starts_line)), None, [], lambda rows: [])
