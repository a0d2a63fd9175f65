"""Interactions -> ordered, filtered `SequenceStore`: repeats, iterative k-core, order, ids.

The order of the steps is RecBole's: repeats, then the k-core, then ids by first appearance in the
filtered file, then time. The core works on int32 codes with `bincount` only: 10 M rows take
seconds (a data frame's group-by takes ten times that).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from recblr.data.readers import DEFAULT_COLUMNS, Format, Interactions, read_log
from recblr.data.sequences import SequenceStore

Order = Literal["auto", "exact", "recbole_float32", "item_id", "shuffled"]
Repeats = Literal["keep", "first", "last"]

logger = logging.getLogger(__name__)


class Round(NamedTuple):
    """What is left after one round of the k-core."""

    rows: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.rows:,} / {self.users:,} / {self.items:,}"


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


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, list[Round]]:
    """Drop users and items with fewer than k rows, both by the same counts, until none is left.

    users, items: (N,) codes. Returns an (N,) bool mask and what each round left; the last round
    changes nothing. k <= 1 filters nothing, in no rounds. Raises ValueError if nothing is left.
    """
    mask = np.ones(len(users), bool)
    alive = np.arange(len(users))
    rounds: list[Round] = []
    of_user, of_item = np.bincount(users), np.bincount(items)
    while k > 1:
        keep = (of_user[users] >= k) & (of_item[items] >= k)
        of_user -= np.bincount(users[~keep], minlength=len(of_user))
        of_item -= np.bincount(items[~keep], minlength=len(of_item))
        mask[alive[~keep]] = False
        alive, users, items = alive[keep], users[keep], items[keep]
        left = (int(np.count_nonzero(counts)) for counts in (of_user, of_item))
        rounds.append(Round(len(alive), *left))
        if not len(alive):
            raise ValueError(
                f"data.min_interactions={k}: nothing is left (rows / users / items after each "
                f"round: {_steps(rounds)}). Lower data.min_interactions or see data.repeats."
            )
        if keep.all():
            break
    return mask, rounds


def _steps(rounds: Sequence[Round]) -> str:
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
            rows = _stable(rows, _rank(log.item_ids)[log.items])
        times = log.times.astype(np.float32) if order == "recbole_float32" else log.times
        rows = _stable(rows, times)
    return _stable(rows, log.users)


def _stable(rows: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rows by key, ties as they come."""
    return rows[np.argsort(key[rows], kind="stable")]


def _rank(ids: np.ndarray) -> np.ndarray:
    """(V,) int64 place of each raw id in numeric order if all are integers, else in text order."""
    numeric = all(re.fullmatch(r"-?[0-9]+", text) for text in ids)
    by_id = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if numeric else 0, ids[i]))
    rank = np.empty(len(ids), np.int64)
    rank[by_id] = np.arange(len(ids))
    return rank


def pack(log: Interactions, order: str, seed: int = 0) -> SequenceStore:
    """Filtered rows -> store. Users from 0, items from 1, by first appearance in file order."""
    users, kept_users = pd.factorize(log.users)
    items, kept_items = pd.factorize(log.items)
    numbered = replace(
        log,
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        user_ids=log.user_ids[kept_users],
        item_ids=log.item_ids[kept_items],
    )
    rows = sort_rows(numbered, order, seed)
    return SequenceStore(
        items=numbered.items[rows] + np.int32(1),
        offsets=np.append(0, np.cumsum(np.bincount(users))).astype(np.int64),
        user_ids=numbered.user_ids,
        item_ids=np.append(np.array([""], dtype=object), numbered.item_ids),
        order=order,
    )


def log_counts(
    name: str, start: Round, repeats: int, rounds: Sequence[Round], store: SequenceStore
) -> None:
    """One line per step: what came in, what each step left, what the store holds."""
    logger.info("%s: %s rows / users / items", name, start)
    if repeats:
        logger.info("%s: %s repeats dropped", name, f"{repeats:,}")
    if len(rounds) == 1:  # the round that changes nothing
        logger.info("%s: k-core: nothing to drop", name)
    elif rounds:
        logger.info("%s: k-core, after each of %d rounds: %s", name, len(rounds), _steps(rounds))
    lengths = store.lengths
    logger.info(
        "%s: %s users, %s items, %s interactions (length: average %.1f, median %.0f, longest %d), "
        "order %s",
        name,
        f"{store.n_users:,}",
        f"{store.n_items:,}",
        f"{len(store.items):,}",
        lengths.mean(),
        np.median(lengths),
        lengths.max(),
        store.order,
    )


@dataclass(frozen=True)
class LogFile:
    """One log and its recipe: what `conf/data/<name>.yaml` instantiates.

    path: the file; None = not set. format, raw_format, columns: see `readers.read_log`.
    order: `auto` = exact if the log has times, else the file's. Files without times take only
        `auto` and `shuffled`.
    repeats: rows of a (user, item) pair to keep: all, the first or the last.
    min_interactions: k of the iterative k-core over users and items; 0 or 1 = no filter.
    expected: {users, items, interactions} after filtering; a difference is logged as a warning.
    known_order: md5 of a sequence file -> name of the order it was written in.
    source: where to get the file.
    """

    name: str
    path: str | None = None
    format: Literal["auto", "sequences", "inter", "table"] = "auto"
    raw_format: Format = "table"
    columns: dict[str, str | int] = field(default_factory=lambda: dict(DEFAULT_COLUMNS))
    order: Order = "auto"
    repeats: Repeats = "keep"
    min_interactions: int = 5
    expected: dict[str, int] | None = None
    known_order: dict[str, str] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.min_interactions < 0:
            raise ValueError(f"data.min_interactions={self.min_interactions}: must be 0 or more")

    def load(self, seed: int = 0) -> SequenceStore:
        """Read, filter, order, pack; logs the counts of each step. seed: for order=shuffled.

        Raises ValueError for a path that is not set, a bad file or recipe, and an empty result.
        """
        if self.path is None:
            where = f"get it from {self.source}, then " if self.source else ""
            raise ValueError(
                f"data.path is not set: {self.name} is not downloaded for you; "
                f"{where}data.path=FILE"
            )
        raw = read_log(self.path, self.format, self.columns, self.raw_format)
        order = self._resolve_order(raw)
        distinct = apply_repeats(raw, self.repeats)
        mask, rounds = k_core(distinct.users, distinct.items, self.min_interactions)
        store = pack(distinct.take(mask), order, seed)
        start = Round(len(raw), len(raw.user_ids), len(raw.item_ids))
        log_counts(self.name, start, len(raw) - len(distinct), rounds, store)
        self._compare(store)
        return store

    def _resolve_order(self, raw: Interactions) -> str:
        if raw.times is not None:
            return "exact" if self.order == "auto" else self.order
        own = "file"
        if self.known_order:
            md5 = hashlib.md5(Path(str(self.path)).expanduser().read_bytes()).hexdigest()
            own = self.known_order.get(md5, own)
            if own != "file":
                logger.info("%s: a known file, by time with ties by %s", self.name, own)
        if self.order in ("auto", own):
            return own
        if self.order == "shuffled":
            return "shuffled"
        raise ValueError(
            f"data.order={self.order}: data.path='{self.path}' is a sequence file in the order "
            f"'{own}', it has no times to sort by. Use data.order=auto or shuffled"
        )

    def _compare(self, store: SequenceStore) -> None:
        found = {"users": store.n_users, "items": store.n_items, "interactions": len(store.items)}
        if self.expected and found == dict(self.expected):
            logger.info("%s: the counts are the expected ones", self.name)
        for what, count in (self.expected or {}).items():
            if found[what] != count:
                logger.warning("%s: %d %s, expected %d", self.name, found[what], what, count)
