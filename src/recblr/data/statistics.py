"""What a log holds: counts before and after preparation, repeats, ties, lengths, orders."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recblr.data.preprocess import Round, steps
from recblr.data.readers import Interactions
from recblr.data.sequences import SequenceStore
from recblr.data.times import time_unit

Counts = dict[str, int]  # users, items, interactions


@dataclass(frozen=True)
class Statistics:
    """What a log held and what each step left; `notes` say what is odd about its times."""

    format: str
    unreadable: int
    raw: Round
    sampled: Round | None
    repeats_dropped: int
    rounds: list[Round]
    notes: list[str]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Statistics:
        """From plain containers, which may hold more."""
        values = {name: plain[name] for name in cls.__dataclass_fields__}
        values["raw"] = Round(*values["raw"])
        values["rounds"] = [Round(*left) for left in values["rounds"]]
        values["sampled"] = values["sampled"] and Round(*values["sampled"])
        return cls(**values)

    def lines(self, store: SequenceStore, beside: Mapping[str, Counts | None]) -> list[str]:
        """A small table, with the counts of `beside` below, and what there is to know about it."""
        out = [f"{'format ' + self.format:<22}{'users':>12}{'items':>12}{'interactions':>14}"]
        rows = {"raw": counts(self.raw), "sampled users": self.sampled and counts(self.sampled)}
        rows |= {"prepared": counts_of(store), **beside}
        for name, row in rows.items():
            if row:
                users, items, events = (row[key] for key in ("users", "items", "interactions"))
                out.append(f"{name:<22}{users:>12,}{items:>12,}{events:>14,}")
        if self.unreadable:
            out.append(f"{self.unreadable:,} unreadable rows left out")
        if self.repeats_dropped:
            out.append(f"{self.repeats_dropped:,} repeats dropped before the k-core")
        if len(self.rounds) == 1:  # the round that changes nothing
            out.append("k-core: nothing to drop")
        elif self.rounds:
            out.append(
                f"k-core, rows / users / items after each of {len(self.rounds)} rounds: "
                f"{steps(self.rounds)}"
            )
        lengths = store.lengths
        out.append(
            f"length: average {lengths.mean():.1f}, median {np.median(lengths):.0f}, longest "
            f"{lengths.max():,}; order {store.order}"
        )
        return out + self.notes


def counts_of(store: SequenceStore) -> Counts:
    return {"users": store.n_users, "items": store.n_items, "interactions": len(store.items)}


def count(log: Interactions) -> Round:
    """Of the rows that are there: some ids may have lost theirs."""
    users, items = (np.count_nonzero(np.bincount(codes)) for codes in (log.users, log.items))
    return Round(len(log), int(users), int(items))


def counts(left: Round) -> Counts:
    return {"users": left.users, "items": left.items, "interactions": left.rows}


def time_notes(times: np.ndarray | None) -> list[str]:
    """The period in UTC, and how many times lie in the future or below zero."""
    notes = []
    if times is not None and (unit := time_unit(times)):
        name, per_second = unit
        first, last = (np.datetime64(int(t // per_second), "s") for t in (times.min(), times.max()))
        notes.append(f"times: {name}, {first} to {last} UTC")
        if ahead := np.count_nonzero(times > time.time() * per_second):
            notes.append(f"{ahead:,} times lie in the future")
    if times is not None and (below := np.count_nonzero(times < 0)):
        notes.append(f"{below:,} times are negative; they are sorted as they are")
    return notes


def repeated(log: Interactions) -> float:
    """Share of rows whose (user, item) came before in the file."""
    pair = log.users.astype(np.int64) * len(log.item_ids) + log.items
    return float(pd.Series(pair).duplicated().mean())


def tied(log: Interactions) -> float | None:
    """Share of rows that share user and time with another row; None without times."""
    if log.times is None:
        return None
    frame = pd.DataFrame({"user": log.users, "time": log.times})
    return float(frame.duplicated(keep=False).mean())


def histogram(lengths: np.ndarray) -> dict[str, int]:
    """Users per range of lengths: 1-2, 3-4, 5-9, then doubling."""
    edges = [1, 3, 5, 10]
    while edges[-1] <= lengths.max():
        edges.append(2 * edges[-1])
    users, _ = np.histogram(lengths, edges)
    names = (f"{low}-{high - 1}" for low, high in itertools.pairwise(edges))
    return {name: int(number) for name, number in zip(names, users) if number}
