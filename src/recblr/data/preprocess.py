"""Interactions -> ordered, filtered `SequenceStore`: repeats, iterative k-core, order, ids.

The order of the steps is RecBole's: repeats, then the k-core, then ids by first appearance in the
filtered file, then time. The core works on int32 codes with `bincount` only: 10 M rows take
seconds (a data frame's group-by takes ten times that).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from recblr.data.readers import Interactions
from recblr.data.sequences import SequenceStore, Split, leave_one_out, temporal

Order = Literal["auto", "exact", "recbole_float32", "item_id", "shuffled"]
Repeats = Literal["keep", "first", "last"]
SplitName = Literal["leave_one_out", "temporal"]


class Counts(NamedTuple):
    """How much there is of a log."""

    interactions: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.interactions:,} / {self.users:,} / {self.items:,}"


def sample_users(log: Interactions, n_users: int) -> Interactions:
    """All rows of `n_users` users, drawn from the sorted raw ids; all if there are no more."""
    ids = np.asarray(log.user_ids.to_numpy(zero_copy_only=False), object)
    if n_users >= len(ids):
        return log
    chosen = np.argsort(ids)[np.random.default_rng(0).choice(len(ids), n_users, False)]
    return log.take(np.isin(log.users, chosen))


def apply_repeats(log: Interactions, policy: Repeats) -> Interactions:
    """Keep every row, or of each (user, item) the first or last by time, then by file row."""
    if policy == "keep":
        return log
    if policy not in ("first", "last"):
        raise ValueError(f"data.repeats={policy}: expected keep, first or last")
    pair = log.users.astype(np.int64) * len(log.item_ids) + log.items
    by_time = np.arange(len(log))
    if log.times is not None:
        by_time = _stable(by_time, log.times)
    kept = by_time[~pd.Series(pair[by_time]).duplicated(keep=policy).to_numpy()]
    return log.take(np.sort(kept))


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, list[Counts]]:
    """Drop users and items with fewer than k rows, both by the same counts, until none is left.

    users, items: (N,) codes. Returns an (N,) bool mask and what each round left; the last round
    changes nothing. k <= 1 filters nothing, in no rounds. Raises ValueError if nothing is left.
    """
    mask = np.ones(len(users), bool)
    alive = np.arange(len(users), dtype=np.int32 if len(users) < 2**31 else np.int64)
    rounds: list[Counts] = []
    counts = [np.bincount(users), np.bincount(items)]
    while k > 1:
        enough = [count >= k for count in counts]  # bool: small enough for the processor's cache
        keep = enough[0][users] & enough[1][items]
        gone, n_left = ~keep, int(np.count_nonzero(keep))
        dropped, left = (users[gone], items[gone]), (users[keep], items[keep])
        for i in (0, 1):  # count whichever is the smaller part
            if n_left < len(keep) - n_left:
                counts[i] = np.bincount(left[i], minlength=len(counts[i]))
            else:
                counts[i] -= np.bincount(dropped[i], minlength=len(counts[i]))
        mask[alive[gone]] = False
        alive, (users, items) = alive[keep], left
        rounds.append(Counts(n_left, *(int(np.count_nonzero(count)) for count in counts)))
        if not n_left:
            raise ValueError(
                f"data.min_interactions={k}: nothing is left (rows / users / items after each "
                f"round: {steps(rounds)}). Lower data.min_interactions or see data.repeats."
            )
        if n_left == len(keep):
            break
    return mask, rounds


def steps(rounds: Sequence[Counts]) -> str:
    return "; ".join(map(str, rounds))


def sort_rows(log: Interactions, order: str, seed: int = 0) -> np.ndarray:
    """(N,) int64 rows by user, and within a user by `order`. Ties keep the file's order.

    order: `exact` = by time; `recbole_float32` = by time as float32 (RecBole's order); `item_id` =
    by time, ties by raw item id, as numbers if all are integers, else as text; `shuffled` = at
    random from `seed`. A log without times is shuffled or left in the file's order, which is what
    the other names then say about it.
    """
    rows = np.arange(len(log))
    if order == "shuffled":
        rows = np.random.default_rng(seed).permutation(len(log))
    elif log.times is not None:
        if order not in ("exact", "recbole_float32", "item_id"):
            raise ValueError(f"data.order={order}: unknown order")
        if order == "item_id":
            rows = _stable(rows, _rank(log.item_ids.to_pylist())[log.items])
        times = log.times.astype(np.float32) if order == "recbole_float32" else log.times
        rows = _stable(rows, times)
    return _stable(rows, log.users)


def _stable(rows: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rows by key, ties as they come."""
    return rows[np.argsort(key[rows], kind="stable")]


def _rank(ids: list[str]) -> np.ndarray:
    """(V,) int64 place of each raw id in numeric order if all are integers, else in text order."""
    numeric = all(re.fullmatch(r"-?[0-9]+", text) for text in ids)
    by_id = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, ids[i]))
    rank = np.empty(len(ids), np.int64)
    rank[by_id] = np.arange(len(ids))
    return rank


def pack(
    log: Interactions,
    order: str,
    seed: int = 0,
    split: SplitName = "leave_one_out",
    cut: tuple[float, float] = (0.8, 0.9),
) -> SequenceStore:
    """Filtered rows -> store. Users from 0, items from 1, by first appearance in file order.

    Raises ValueError for a temporal split of a log that is not in the order of its times.
    """
    users, kept_users = pd.factorize(log.users)
    items, kept_items = pd.factorize(log.items)
    numbered = replace(
        log,
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        user_ids=log.user_ids.take(pa.array(kept_users)),
        item_ids=log.item_ids.take(pa.array(kept_items)),
    )
    rows = sort_rows(numbered, order, seed)
    offsets = np.append(0, np.cumsum(np.bincount(users))).astype(np.int64)
    return SequenceStore(
        items=numbered.items[rows] + np.int32(1),
        offsets=offsets,
        user_ids=_objects(numbered.user_ids),
        item_ids=np.append(np.array([""], dtype=object), _objects(numbered.item_ids)),
        order=order,
        split=_split(split, offsets, log.times, rows, order, cut),
    )


def _split(
    name: SplitName,
    offsets: np.ndarray,
    times: np.ndarray | None,
    rows: np.ndarray,
    order: str,
    cut: tuple[float, float],
) -> Split:
    if name == "leave_one_out":
        return leave_one_out(offsets)
    if name != "temporal":
        raise ValueError(f"data.split={name}: expected leave_one_out or temporal")
    if times is None or order not in ("exact", "item_id"):
        raise ValueError(
            f"data.split=temporal: needs times and data.order=exact or item_id, the order is "
            f"'{order}'"
        )
    return temporal(offsets, times[rows], cut)


def _objects(ids: pa.StringArray) -> np.ndarray:
    return np.asarray(ids.to_numpy(zero_copy_only=False), object)
