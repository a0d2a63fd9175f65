"""The one batch type: sequences packed end to end, without padding.

Shapes: N packed items, B sequences, T longest sequence of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SequenceBatch:
    """B item sequences, packed.

    items (N,) int64: item ids 1..V; row t of sequence b is `items[cu_seqlens[b] + t]`.
    cu_seqlens (B+1,) int64: start of each sequence, then N.
    targets int64: one per sequence (B,), or one per position (N,); 0 = no target.
    user_ids (B,) int64: index of the user in the store.
    cu_seqlens_host (B+1,) int64: the same on the CPU, so that nothing waits for a device.
    seen, cu_seen: packed item ids that the user has met (whole history, not only the window);
        present only when evaluation masks the history.
    """

    items: Tensor
    cu_seqlens: Tensor
    targets: Tensor
    user_ids: Tensor
    cu_seqlens_host: Tensor
    seen: Tensor | None = None
    cu_seen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.cu_seqlens.diff()

    @property
    def sequence(self) -> Tensor:
        """(N,) int64: the sequence of each packed row."""
        index = torch.arange(len(self), device=self.items.device)
        return index.repeat_interleave(self.lengths, output_size=len(self.items))

    @property
    def place(self) -> Tensor:
        """(N,) int64: the place of each packed row in its sequence, from 0."""
        row = torch.arange(len(self.items), device=self.items.device)
        return row - self.cu_seqlens[self.sequence]

    @property
    def last(self) -> Tensor:
        """(B,) int64: packed index of each sequence's last item; every sequence must have one."""
        assert (self.cu_seqlens_host.diff() > 0).all(), "an empty sequence has no last item"
        return self.cu_seqlens[1:] - 1

    @property
    def one_target_per_sequence(self) -> bool:
        """True for `targets (B,)`. Where N = B both readings are the same."""
        return len(self.targets) == len(self)

    @property
    def n_targets(self) -> Tensor:
        """int64 scalar on the batch's device."""
        return self.targets.count_nonzero()

    def met(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What each of some packed rows (M,) and the rows before it in its sequence hold.

        Returns the index in `rows` and the item, (C,) int64 each, a pair once, by index.
        """
        counts = self.place[rows] + 1  # (M,)
        index = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)  # (C',)
        before = counts.cumsum(0)[index] - torch.arange(len(index), device=rows.device) - 1
        items = self.items[rows[index] - before]
        base = items.max() + 1 if len(items) else 1
        pairs = (index * base + items).unique()
        return pairs // base, pairs % base

    def targets_ahead(self, rows: Tensor, ahead: int) -> Tensor:
        """(M, ahead) int64 of packed rows (M,): their targets and those of the rows after them.

        0 where the sequence ends; the batch must have a target per position.
        """
        assert len(self.targets) == len(self.items), "one target per sequence: none is after it"
        later = rows[:, None] + torch.arange(ahead, device=rows.device)
        at = later.clamp(max=max(len(self.items) - 1, 0))
        inside = (at == later) & (self.sequence[at] == self.sequence[rows][:, None])
        return self.targets[at] * inside

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceBatch:
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if f.name != "cu_seqlens_host" and (value := getattr(self, f.name)) is not None
        }
        return replace(self, **moved)

    def padded(self, side: Literal["left", "right"] = "right") -> Tensor:
        """Item ids as (B, T) int64, 0 = padding on the given side."""
        lengths = self.lengths
        longest = int(self.cu_seqlens_host.diff().max()) if len(self) else 0
        column = torch.arange(longest, device=self.items.device)
        if side == "left":
            column = column - (longest - lengths)[:, None]  # (B, T), negative = padding
        else:
            column = column.expand(len(self), longest)
        inside = (column >= 0) & (column < lengths[:, None])
        out = self.items.new_zeros(len(self), longest)
        out[inside] = self.items  # row-major order of the mask = packed order
        return out

    def with_one_more(self, events: Tensor, full: int) -> SequenceBatch:
        """The batch with one more item (B,) at the end of each sequence; targets stay as they are.

        Sequences of `full` items or more lose their oldest.
        """
        starts, lengths = self.cu_seqlens_host[:-1], self.cu_seqlens_host.diff()
        lost = (lengths >= full).long()
        host = F.pad((lengths + 1 - lost).cumsum(0), (1, 0))
        sequence = torch.repeat_interleave(host.diff())
        source = torch.arange(len(sequence)) + (starts + lost - host[:-1])[sequence]
        source[host[1:] - 1] = len(self.items) + torch.arange(len(self))  # the events
        device = self.items.device
        items = torch.cat((self.items, events))[source.to(device)]
        return replace(self, items=items, cu_seqlens=host.to(device), cu_seqlens_host=host)
