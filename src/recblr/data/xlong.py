"""Alibaba's XLong: rows of `row, user, item,item,.., next item, negative items`, tab-separated.

A row is not a user: the two files hold several overlapping rows of one person, without times, and
a split by rows would train on test items. Of each user the longest row is kept, ties the first:
its items and then the next item, oldest first. Negative items are not events.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recblr.data.sources import Source
from recblr.data.tables import RawRows, read_tokens


def read_xlong(sources: list[Source]) -> RawRows:
    """Rows of all files together. Raises ValueError, naming file and line, for a malformed row."""
    longest: dict[str, str] = {}
    counts: dict[str, int] = {}
    for source in sources:
        with source.open() as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    fields = line.decode().rstrip("\r\n").split("\t")
                except UnicodeDecodeError:
                    raise ValueError(f"{source}: line {number}: not UTF-8") from None
                if fields == [""]:
                    continue
                if len(fields) != 5 or not all(fields[1:4]) or ",," in fields[2]:
                    raise ValueError(
                        f"{source}: line {number}: expected 5 fields (row, user, items, next item, "
                        f"negative items), found {len(fields)} or an empty one"
                    )
                _, user, history, following, _ = fields
                items = history.strip(",") + "," + following
                n_items = items.count(",") + 1
                if n_items > counts.get(user, 0):
                    longest[user], counts[user] = items, n_items
    lengths = np.fromiter((counts[user] for user in longest), np.int64, len(longest))
    items = read_tokens(",".join(longest.values()).replace(",", "\n").encode())
    users = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(longest), dtype=np.int32), lengths)),
        pa.array(list(longest), pa.string()),
    )
    return RawRows(pa.chunked_array([users]), items, None, [], lambda rows: [])
