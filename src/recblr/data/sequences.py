"""Packed user sequences, and the rows that training and evaluation read from them.

Splits, prefixes and windows are index views into one array of items: nothing is copied before a
batch is built. Leave-one-out: a user's last item is the test target, the one before it the
validation target; users with fewer than 3 events stay in training only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from recblr.data.batch import SequenceBatch


@dataclass(frozen=True)
class SequenceStore:
    """N events of U users over V items, 4 bytes per event and 8 per user.

    items (N,) int32: ids 1..V; user u's events are `items[offsets[u]:offsets[u + 1]]`, in order.
    offsets (U+1,) int64.
    user_ids (U,), item_ids (V+1,) object arrays of str: raw ids; `item_ids[0]` is "", the padding.
    order: name of the order within a user.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    order: str

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


def train_stops(store: SequenceStore) -> np.ndarray:
    """(U,) int64: absolute index after each user's last training event."""
    return store.offsets[1:] - np.where(store.lengths >= 3, 2, 0)


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
    inputs = np.maximum(train_stops(store) - first - 1, 0)  # (U,) the last event is only a target
    if target_mode == "prefix":
        user, position = _expand(inputs)
        stop = first[user] + position + 1
        return Rows(user, np.maximum(first[user], stop - max_length), stop, stop - 1)
    if target_mode != "all_positions":
        raise ValueError(f"target_mode={target_mode}: expected all_positions or prefix")
    stride = max(1, max_length // 2)
    windows = np.where(inputs > 0, 1 + -(-np.maximum(inputs - max_length, 0) // stride), 0)
    user, window = _expand(windows)
    end = np.minimum(max_length + window * stride, inputs[user])
    start = np.maximum(end - max_length, 0)
    target_from = np.where(window > 0, max_length + (window - 1) * stride, 0)
    base = first[user]
    return Rows(user, base + start, base + end, base + target_from)


def evaluation_rows(store: SequenceStore, split: Literal["val", "test"], max_length: int) -> Rows:
    """One row per user of 3 or more events: its last `max_length` events before the target.

    val: the target is the event before the last; test: the last, and the history includes the
    validation item.
    """
    _check_length(max_length)
    if split not in ("val", "test"):
        raise ValueError(f"split={split}: expected val or test")
    user = np.flatnonzero(store.lengths >= 3)
    stop = store.offsets[user + 1] - (2 if split == "val" else 1)
    return Rows(user, np.maximum(store.offsets[user], stop - max_length), stop, stop - 1)


def _check_length(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be 1 or more")


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """counts (R,) -> (row, place within the row), each (sum of counts,) int64."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def split_hash(store: SequenceStore) -> str:
    """sha256 (hex) of the raw item ids in id order and, per raw user id, the ordered events.

    Leave-one-out makes history, validation and test item of each user a function of its events.
    Every part has its length before it, integers are little-endian: the same on every machine.
    """
    digest = hashlib.sha256(b"leave_one_out")
    for ids in (store.item_ids[1:], store.user_ids):
        texts = [text.encode() for text in ids]
        digest.update(np.array([len(texts), *map(len, texts)], dtype="<i8").tobytes())
        digest.update(b"".join(texts))
    digest.update(store.lengths.astype("<i8").tobytes())
    digest.update(store.items.astype("<i4").tobytes())
    return digest.hexdigest()


class PackedLoader:
    """One epoch of rows as packed batches; builds each batch when it is asked for.

    shuffle: (seed, epoch) that fixes the order of the rows; None = the given order.
    budget: what `batch_size` counts. `targets`: a row goes to batch floor(targets before it /
        batch_size), so a batch holds `batch_size` targets give or take one row; `rows`.
    one_target: targets (B,), the event after each row's last input; else (N,), 0 before
        `target_from`.
    seen: add each user's whole history up to the row's end.
    """

    def __init__(
        self,
        store: SequenceStore,
        rows: Rows,
        batch_size: int,
        *,
        shuffle: tuple[int, int] | None = None,
        budget: Literal["targets", "rows"],
        one_target: bool,
        seen: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 1 or more")
        self.store, self.rows = store, rows
        self.one_target, self.seen = one_target, seen
        order = np.arange(len(rows))
        if shuffle is not None:
            order = np.random.default_rng(list(shuffle)).permutation(len(rows))
        targets = np.ones(len(rows), np.int64) if one_target else rows.stop - rows.target_from
        self.n_targets = int(targets.sum())
        spent = targets[order] if budget == "targets" else np.ones(len(rows), np.int64)
        batch = (np.cumsum(spent) - spent) // batch_size  # (R,); a huge row skips numbers
        self._batches = np.split(order, np.flatnonzero(np.diff(batch)) + 1) if len(rows) else []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SequenceBatch]:
        return map(self._build, self._batches)

    def _build(self, chosen: np.ndarray) -> SequenceBatch:
        items, rows = self.store.items, self.rows
        user, start, stop = rows.user[chosen], rows.start[chosen], rows.stop[chosen]
        row, index, cu_seqlens = _gather(start, stop)
        if self.one_target:
            targets = items[stop]
        else:
            targets = items[index + 1] * (index >= rows.target_from[chosen][row])
        seen = cu_seen = None
        if self.seen:
            _, seen_index, cu_seen = _gather(self.store.offsets[user], stop)
            seen, cu_seen = _tensor(items[seen_index]), _tensor(cu_seen)
        offsets = _tensor(cu_seqlens)
        return SequenceBatch(
            items=_tensor(items[index]),
            cu_seqlens=offsets,
            targets=_tensor(targets),
            user_ids=_tensor(user),
            cu_seqlens_host=offsets,
            seen=seen,
            cu_seen=cu_seen,
        )


def _gather(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views [start, stop) (B,) end to end: row (N,), index (N,), cumulative lengths (B+1,)."""
    lengths = stop - start
    row, place = _expand(lengths)
    return row, start[row] + place, np.append(0, np.cumsum(lengths))


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
