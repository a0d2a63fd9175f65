"""Rows of a `SequenceStore` -> packed batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from recblr.data.batch import SequenceBatch
from recblr.data.sequences import Rows, SequenceStore, expand


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
    row, place = expand(lengths)
    return row, start[row] + place, np.append(0, np.cumsum(lengths))


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
