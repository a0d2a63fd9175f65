"""What ops on packed sequences share."""

from __future__ import annotations

import torch
from torch import Tensor

Expected = tuple[Tensor | None, tuple[int, ...]]  # a tensor, if there is one, and its shape


def power_of_two(length: int) -> int:
    """The least power of two that is not below a length."""
    return 1 << max(length - 1, 0).bit_length()


def check_rows(name: str, rows: Tensor) -> torch.dtype:
    """ValueError unless (N, C) of a float dtype; the dtype to compute in: float32 for halves."""
    if rows.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected (N, C)")
    if not rows.is_floating_point():
        raise ValueError(f"{name} is {rows.dtype}, expected a float dtype")
    return torch.promote_types(rows.dtype, torch.float32)


def check_others(name: str, rows: Tensor, dtype: torch.dtype, **expected: Expected) -> None:
    """ValueError unless each tensor has its shape, is a float up to `dtype`, on the rows' device.

    name: of the rows.
    """
    for other, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{other} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{other} is {tensor.dtype}, expected a float dtype")
        if torch.promote_types(tensor.dtype, dtype) != dtype:
            raise ValueError(f"{other} is {tensor.dtype}, too wide for {name} of {rows.dtype}")
        if tensor.device != rows.device:
            raise ValueError(f"{other} is on {tensor.device}, {name} on {rows.device}")


def check_cu_seqlens(cu_seqlens: Tensor, rows: Tensor, host: Tensor | None = None) -> None:
    """ValueError unless int64 (B+1,), on the rows' device, from 0, never falling, to their number.

    host: the same on the CPU. Values on a device are not looked at, so that nothing waits for it:
    those of `host` are.
    """
    for name, tensor in (("cu_seqlens", cu_seqlens), ("cu_seqlens_host", host)):
        if tensor is None:
            continue
        if tensor.dtype != torch.int64 or tensor.dim() != 1 or not len(tensor):
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{name} is {found}, expected torch.int64 of shape (B+1,)")
    if cu_seqlens.device != rows.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, the rows are on {rows.device}")
    if host is not None and (host.device.type != "cpu" or host.shape != cu_seqlens.shape):
        found = f"is on {host.device} with {len(host)} values"
        raise ValueError(f"cu_seqlens_host {found}, expected the CPU and {len(cu_seqlens)}")
    if cu_seqlens.device.type == "cpu":
        _check_values("cu_seqlens", cu_seqlens, len(rows))
        if host is not None and not torch.equal(host, cu_seqlens):
            at = int((host != cu_seqlens).nonzero()[0])
            found = f"is {int(host[at])} at index {at}, cu_seqlens {int(cu_seqlens[at])}"
            raise ValueError(f"cu_seqlens_host {found}: they must be the same")
    elif host is not None:
        _check_values("cu_seqlens_host", host, len(rows))


def _check_values(name: str, cu_seqlens: Tensor, rows: int) -> None:
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if (first, last) != (0, rows):
        raise ValueError(f"{name} spans {first}..{last}, expected 0..{rows}, the rows given")
    if (fall := cu_seqlens.diff() < 0).any():
        at = int(fall.nonzero()[0])
        raise ValueError(
            f"{name} falls from {int(cu_seqlens[at])} to {int(cu_seqlens[at + 1])} at index "
            f"{at + 1}: lengths cannot be negative"
        )
