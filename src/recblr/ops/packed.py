"""What ops on packed sequences share."""

from __future__ import annotations

import torch


def power_of_two(length: int) -> int:
    """The least power of two that is not below a length."""
    return 1 << max(length - 1, 0).bit_length()


def check_cu_seqlens(cu_seqlens: torch.Tensor, rows: int) -> None:
    """ValueError unless int64, from 0, never falling, to `rows`; of a device only the dtype."""
    if cu_seqlens.dtype != torch.int64 or cu_seqlens.dim() != 1 or not len(cu_seqlens):
        found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens is {found}, expected torch.int64 of shape (B+1,)")
    if cu_seqlens.device.type != "cpu":
        return
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if (first, last) != (0, rows):
        raise ValueError(f"cu_seqlens spans {first}..{last}, expected 0..{rows}, the rows given")
    if (fall := cu_seqlens.diff() < 0).any():
        at = int(fall.nonzero()[0])
        raise ValueError(
            f"cu_seqlens falls from {int(cu_seqlens[at])} to {int(cu_seqlens[at + 1])} at index "
            f"{at + 1}: lengths cannot be negative"
        )
