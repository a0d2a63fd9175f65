"""Packed user sequences, and the rows that training and evaluation read from them.

Splits, prefixes and windows are index views into one array of items: nothing is copied before a
batch is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Split:
    """Which events train, and which one per user is to be predicted.

    name: `leave_one_out` or `temporal`.
    train_stops (U,) int64: absolute index after each user's last training event.
    val, test (U,) int64: absolute index of the target, -1 for users without one. The history of
        a target is every event of its user before it.
    """

    name: str
    train_stops: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def targets(self, part: Literal["val", "test"]) -> np.ndarray:
        if part not in ("val", "test"):
            raise ValueError(f"split={part}: expected val or test")
        return self.val if part == "val" else self.test


def leave_one_out(offsets: np.ndarray) -> Split:
    """Last event = test, the one before = validation; with fewer than 3 events, training only."""
    stops, enough = offsets[1:], np.diff(offsets) >= 3
    val, test = (np.where(enough, stops - back, -1) for back in (2, 1))
    return Split("leave_one_out", np.where(enough, stops - 2, stops), val, test)


def temporal(offsets: np.ndarray, times: np.ndarray, cut: tuple[float, float]) -> Split:
    """Train up to one moment of time for all users, validate up to another, test after it.

    times (N,): of the packed events, rising within each user. cut: quantiles of all times, so that
        no training event is later than the first. A user's validation target is its last event
        between the cuts, its test target the last after the second; both need one event before.
    """
    first, second = np.quantile(times, cut, method="lower")
    up_to = [np.append(0, np.cumsum(times <= moment)) for moment in (first, second)]
    starts, stops = offsets[:-1], offsets[1:]
    until_first, until_second = (starts + sums[stops] - sums[starts] for sums in up_to)

    def last(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return np.where((stop > start) & (stop - 1 > starts), stop - 1, -1)

    return Split(
        "temporal", until_first, last(until_first, until_second), last(until_second, stops)
    )


@dataclass(frozen=True)
class SequenceStore:
    """N events of U users over V items, 4 bytes per event and 32 per user.

    items (N,) int32: ids 1..V; user u's events are `items[offsets[u]:offsets[u + 1]]`, in order.
    offsets (U+1,) int64.
    user_ids (U,), item_ids (V+1,) object arrays of str: raw ids; `item_ids[0]` is "", the padding.
    order: name of the order within a user.
    split: what trains and what is predicted.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    order: str
    split: Split

    @property
    def n_items(self) -> int:
        return len(self.item_ids) - 1

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 events per user."""
        return np.diff(self.offsets)

    @cached_property
    def split_hash(self) -> str:
        """sha256 (hex) of the raw item ids in id order and, per raw user id, the ordered events.

        Leave-one-out makes history, validation and test item of each user a function of its
        events; of other splits the indices are hashed too. Every part has its length before it,
        integers are little-endian: the same on every machine.
        """
        digest = hashlib.sha256(self.split.name.encode())
        for ids in (self.item_ids[1:], self.user_ids):
            texts = [text.encode() for text in ids]
            digest.update(np.array([len(texts), *map(len, texts)], dtype="<i8").tobytes())
            digest.update(b"".join(texts))
        digest.update(self.lengths.astype("<i8").tobytes())
        digest.update(self.items.astype("<i4").tobytes())
        if self.split.name != "leave_one_out":
            for indices in (self.split.train_stops, self.split.val, self.split.test):
                digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Rows:
    """R views into `store.items`: user, start, stop, target_from, each (R,) int64.

    A row's inputs are `items[start:stop]`; position p in [target_from, stop) has the target
    `items[p + 1]`, earlier positions have none. user: index of the user in the store.
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target_from: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def training_rows(
    store: SequenceStore, max_length: int, target_mode: Literal["all_positions", "prefix"]
) -> Rows:
    """Rows that train every event but a user's first exactly once, never validation or test.

    all_positions: one row per user of at most `max_length` inputs; longer users are cut into
        windows of `max_length` inputs with stride max_length // 2, the last one moved to end at
        the last input. A window's targets are those after the window before it.
    prefix: one row per target, its last `max_length` inputs (RecBole's augmentation).
    """
    _check_length(max_length)
    first = store.offsets[:-1]
    inputs = np.maximum(store.split.train_stops - first - 1, 0)  # (U,) the last is only a target
    if target_mode == "prefix":
        user, position = expand(inputs)
        stop = first[user] + position + 1
        return Rows(user, np.maximum(first[user], stop - max_length), stop, stop - 1)
    if target_mode != "all_positions":
        raise ValueError(f"target_mode={target_mode}: expected all_positions or prefix")
    stride = max(1, max_length // 2)
    windows = np.where(inputs > 0, 1 + -(-np.maximum(inputs - max_length, 0) // stride), 0)
    user, window = expand(windows)
    end = np.minimum(max_length + window * stride, inputs[user])
    start = np.maximum(end - max_length, 0)
    target_from = np.where(window > 0, max_length + (window - 1) * stride, 0)
    base = first[user]
    return Rows(user, base + start, base + end, base + target_from)


def evaluation_rows(store: SequenceStore, split: Literal["val", "test"], max_length: int) -> Rows:
    """One row per user who has a target: its last `max_length` events before it."""
    _check_length(max_length)
    targets = store.split.targets(split)
    user = np.flatnonzero(targets >= 0)
    stop = targets[user]
    return Rows(user, np.maximum(store.offsets[user], stop - max_length), stop, stop - 1)


def _check_length(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be 1 or more")


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """counts (R,) -> (row, place within the row), each (sum of counts,) int64."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
