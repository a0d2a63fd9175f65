"""What a log holds: counts before and after preparation, repeats, ties, lengths, orders."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recblr.data.preprocess import Counts, steps
from recblr.data.readers import Interactions
from recblr.data.sequences import SequenceStore
from recblr.data.times import time_unit


@dataclass(frozen=True)
class Statistics:
    """What a log held and what each step left; `notes` say what is odd about its times."""

    format: str
    unreadable: int
    raw: Counts
    sampled: Counts | None
    repeats_dropped: int
    rounds: list[Counts]
    notes: list[str]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Statistics:
        """From plain containers, which may hold more."""
        values = {name: plain[name] for name in cls.__dataclass_fields__}
        values["raw"] = Counts(*values["raw"])
        values["rounds"] = [Counts(*left) for left in values["rounds"]]
        values["sampled"] = values["sampled"] and Counts(*values["sampled"])
        return cls(**values)

    def lines(self, store: SequenceStore, beside: Mapping[str, dict[str, int] | None]) -> list[str]:
        """A small table, with the counts of `beside` below, and what there is to know about it."""
        out = [f"{'format ' + self.format:<22}{'users':>12}{'items':>12}{'interactions':>14}"]
        own = {"raw": self.raw, "sampled users": self.sampled, "prepared": counts_of(store)}
        rows = {name: counts._asdict() for name, counts in own.items() if counts} | dict(beside)
        for name, row in rows.items():
            if row:
                cells = (row.get(key) for key in ("users", "items", "interactions"))
                users, items, events = ("unknown" if n is None else f"{n:,}" for n in cells)
                out.append(f"{name:<22}{users:>12}{items:>12}{events:>14}")
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
    return Counts(len(store.items), store.n_users, store.n_items)


def count(log: Interactions) -> Counts:
    """Of the rows that are there: some ids may have lost theirs."""
    users, items = (np.count_nonzero(np.bincount(codes)) for codes in (log.users, log.items))
    return Counts(len(log), int(users), int(items))


def time_notes(times: np.ndarray | None) -> list[str]:
    """The period in UTC, and how many times lie in the future or below zero."""
    notes = []
    if times is not None and (unit := time_unit(times)):
        name, per_second = unit
        first, last = (_date(t / per_second) for t in (times.min(), times.max()))
        notes.append(f"times: {name}, {first} to {last} UTC")
        if far := np.count_nonzero((times > 4.2e9 * per_second) | (abs(times) < 1e7 * per_second)):
            notes.append(f"{far:,} times lie far from the others: are units mixed?")
        elif ahead := np.count_nonzero(times > time.time() * per_second):
            notes.append(f"{ahead:,} times lie in the future")
    if times is not None and (below := np.count_nonzero(times < 0)):
        notes.append(f"{below:,} times are negative; they are sorted as they are")
    return notes


def cut_note(store: SequenceStore, times: np.ndarray, cut: tuple[float, float]) -> str:
    """Where a temporal split cuts, and how many events and users it leaves on each side."""
    moments = np.quantile(times, cut, method="lower")
    _, per_second = time_unit(times) or ("", 1)
    first, second = (_date(moment / per_second) for moment in moments)
    split = store.split
    trained = int((split.train_stops - store.offsets[:-1]).sum())
    return (
        f"temporal split: {trained:,} events up to {first} train; {(split.val >= 0).sum():,} users "
        f"have a validation target up to {second}, {(split.test >= 0).sum():,} a test target later"
    )


def _date(seconds: float) -> str:
    """ISO date, or the number where it is none of the years that ISO 8601 has."""
    return str(np.datetime64(int(seconds), "s")) if abs(seconds) < 2e11 else f"{seconds:g} s"


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
