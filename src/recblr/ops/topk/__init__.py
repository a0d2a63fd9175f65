"""The exact top k of each user among all items, streamed over blocks of items."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recblr.ops.backends import HAS_NUMBA
from recblr.ops.topk import library

MOST = 100  # a longer list of the best costs more to keep in order than torch's search


def top_k(
    score_block: Callable[[int, int], Tensor],
    k: int,
    n_items: int,
    block_items: int = 16384,
    allowed: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """For each user the k items of the highest scores, best first; equal scores by rising id.

    score_block(lo, hi) -> (B, hi - lo), float: scores of item ids lo..hi-1, as for `count_ranks`;
    written to in place if `allowed` or `seen` is given.
    allowed (V+1,) bool: False = no candidate for anybody. seen: users and items 1..V, (N,) int64
    each, repeats allowed: pairs that are no candidates.
    Returns scores (B, k) and items (B, k) int64; where a user has fewer candidates the last are
    -inf and item 0. Memory is that of one block. ValueError for k < 1 and for NaN scores.
    """
    if k < 1:
        raise ValueError(f"k={k}: must be 1 or more")
    best: tuple[Tensor, Tensor] | None = None
    for lo in range(1, n_items + 1, block_items):
        hi = min(lo + block_items, n_items + 1)
        scores = score_block(lo, hi)
        shared = scores.stride(0) == 0 or len(scores) == 1  # one row for all users, or may be
        if shared and (allowed is not None or seen is not None):
            scores = scores.clone()
        if allowed is not None:
            scores.masked_fill_(~allowed[lo:hi], -torch.inf)
        if seen is not None:
            users, items = seen
            if (lo, hi) != (1, n_items + 1):
                inside = (items >= lo) & (items < hi)
                users, items = users[inside], items[inside]
            scores[users, items - lo] = -torch.inf
        values, columns = of_block(scores, k)
        if best is not None:  # ids of earlier blocks are lower: a stable order keeps them first
            values, columns = torch.cat((best[0], values), 1), torch.cat((best[1], columns + lo), 1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            best = values[:, :k], columns.gather(1, order[:, :k])
        else:
            best = values, columns + lo
    assert best is not None, "a catalogue without items"
    values, items = best
    if not math.isfinite(values.sum()):
        if values.isnan().any():
            raise ValueError(f"scores of {int(values.isnan().any(1).sum())} users contain NaN")
        items = items.masked_fill(values == -torch.inf, 0)
    missing = k - values.shape[1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
        items = torch.nn.functional.pad(items, (0, missing))
    return values, items


def of_block(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (B, min(k, width)) of the highest scores, ties by column, NaN highest."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and k <= MOST and HAS_NUMBA:
        from recblr.ops.topk import cpu

        return cpu.topk_rows(scores, k)
    return library.topk_rows(scores, k)
