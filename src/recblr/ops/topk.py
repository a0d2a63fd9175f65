"""The exact top k of each user among all items, streamed over blocks of items."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32  # items of which only the best is compared at first
FEW = 8  # users for whom one search through all items is faster


def top_k(
    score_block: Callable[[int, int], Tensor],
    k: int,
    n_items: int,
    block_items: int = 16384,
    allowed: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """For each user the k items of the highest scores, best first; equal scores by rising id.

    score_block(lo, hi) -> (B, hi - lo), float: scores of item ids lo..hi-1, as for `count_ranks`; a
    result without `allowed` and `seen` is not written to.
    allowed (V+1,) bool: False = no candidate for anybody. seen: users and items, (N,) int64 each,
    repeats allowed: pairs that are no candidates.
    Returns scores (B, k) and items (B, k) int64; where a user has fewer candidates the last are
    -inf and item 0. Memory is that of one block. ValueError for NaN scores.
    """
    best: tuple[Tensor, Tensor] | None = None
    for lo in range(1, n_items + 1, block_items):
        hi = min(lo + block_items, n_items + 1)
        scores = score_block(lo, hi)
        if (allowed is not None or seen is not None) and scores.stride(0) == 0:
            scores = scores.clone()  # one row for all users
        if allowed is not None:
            scores.masked_fill_(~allowed[lo:hi], -torch.inf)
        if seen is not None:
            users, items = seen
            if (lo, hi) != (1, n_items + 1):
                inside = (items >= lo) & (items < hi)
                users, items = users[inside], items[inside]
            scores.index_put_((users, items - lo), scores.new_tensor(-torch.inf))
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
    """Values and columns (B, min(k, width)) of the highest scores (B, width), ties by column."""
    width = scores.shape[1]
    more = min(k + 1, width)  # one more than asked for shows a tie at the end
    groups = width // GROUP
    if groups > 4 * more and len(scores) >= FEW:
        # What is among the best is in a group whose best is.
        head = scores[:, : groups * GROUP].unflatten(1, (GROUP, groups))
        _, chosen = head.amax(1).topk(more, sorted=False)  # (B, more)
        columns = chosen[:, None] + groups * torch.arange(GROUP, device=chosen.device)[:, None]
        rest = torch.arange(groups * GROUP, width, device=chosen.device).expand(len(scores), -1)
        columns = torch.cat((columns.flatten(1), rest), 1)
        values, place = scores.gather(1, columns).topk(more)
        columns = columns.gather(1, place)
    else:
        values, columns = scores.topk(more)
    tied = values[:, 1:] == values[:, :-1]
    if tied.any():
        tied = (tied & (values[:, 1:] > -torch.inf)).any(1)
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered.values[:, :more], ordered.indices[:, :more]
    return values[:, :k], columns[:, :k]
