"""Exact rank counts of one target per user among all items, streamed over blocks of items."""

from collections.abc import Callable

import torch
from torch import Tensor

NEVER = 2**31 - 1  # items above a target that no list can hold
CHUNK_SCORES = 1 << 18  # compared at a time on the CPU: 1 MB of float32 stays in a core's cache


def count_ranks(
    score_block: Callable[[int, int], Tensor],
    targets: Tensor,
    n_items: int,
    block_items: int = 16384,
    seen: Tensor | None = None,
    cu_seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """For each user, how many items score strictly above, and how many others equal, the target.

    score_block(lo, hi) -> (B, hi - lo), float: scores of item ids lo..hi-1. It is called with
    1 <= lo < hi <= n_items + 1, so padding (id 0) is never ranked; its result is not written to.
    targets (B,) int64 in 1..n_items. seen, cu_seen (B+1,) int64: packed ids that are no candidates
    for their user (repeats allowed).
    Returns higher, equal: (B,) int64; NEVER and 0 for a target that is no candidate.

    The target's score is read from the block that its rivals are in, so equal scores tie
    exactly. Blocks are scored twice, but the last only once, and a first time only if a target
    is in it; memory is that of one block. ValueError for NaN or infinite scores, and for targets
    out of range.
    """
    if len(targets) and not 1 <= int(targets.min()) <= int(targets.max()) <= n_items:
        raise ValueError(f"targets span {targets.min()}..{targets.max()}, expected 1..{n_items}")
    blocks = [(lo, min(lo + block_items, n_items + 1)) for lo in range(1, n_items + 1, block_items)]
    target_scores = None
    scores = None  # of the last block, once the first pass is over
    for lo, hi in blocks:
        inside = (targets >= lo) & (targets < hi)
        if (lo, hi) != blocks[-1] and not inside.any():
            continue
        scores = score_block(lo, hi)
        found = scores.gather(1, (targets - lo).clamp(0, hi - lo - 1)[:, None])  # (B, 1)
        if target_scores is None:
            target_scores = found
        else:
            target_scores = torch.where(inside[:, None], found, target_scores)

    higher, equal = torch.zeros_like(targets), torch.full_like(targets, -1)  # without the target
    for lo, hi in reversed(blocks):
        if scores is None:
            scores = score_block(lo, hi)
        masked = hidden_cells(lo, hi, seen, cu_seen) if seen is not None else None
        add_counts(scores, target_scores, masked, higher, equal)
        scores = None
    if seen is not None:
        user = users_of(seen, cu_seen)
        met = user[seen == targets[user]]
        higher[met], equal[met] = NEVER, 0
    return higher, equal


def hidden_cells(lo, hi, seen, cu_seen) -> tuple[Tensor, Tensor]:
    """Users and columns of the seen items in lo..hi-1."""
    hidden = (seen >= lo) & (seen < hi)
    return users_of(seen, cu_seen)[hidden], seen[hidden] - lo


def users_of(seen, cu_seen) -> Tensor:
    """The user of each seen item."""
    return torch.repeat_interleave(cu_seen.diff(), output_size=len(seen))


def add_counts(scores, target_scores, hidden, higher, equal) -> None:
    """Add the counts of one block (B, items) to `higher` and `equal`, by chunks of users."""
    users, items = scores.shape
    rows = max(CHUNK_SCORES // items, 1) if scores.device.type == "cpu" else max(users, 1)
    flags = scores.new_empty(min(rows, users), items, dtype=torch.float32)  # 0 or 1: exact sums
    sums = scores.new_empty(users, dtype=torch.promote_types(scores.dtype, torch.float32))
    if hidden is not None:
        bounds = torch.searchsorted(
            hidden[0], torch.arange(0, users + rows, rows).to(scores.device)
        )
        bounds = bounds.tolist()
    for number, start in enumerate(range(0, users, rows)):
        chunk = slice(start, min(start + rows, users))
        part, target, flag = scores[chunk], target_scores[chunk], flags[: users - start]
        torch.sum(part, 1, dtype=sums.dtype, out=sums[chunk])
        counts = []
        for compare in (torch.gt, torch.ge):
            compare(part, target, out=flag)
            if hidden is not None:
                cells = slice(bounds[number], bounds[number + 1])
                flag[hidden[0][cells] - start, hidden[1][cells]] = 0
            counts.append(flag.sum(1).long())
        higher[chunk] += counts[0]
        equal[chunk] += counts[1] - counts[0]
    if not sums.isfinite().all():  # also when finite scores sum to infinity: look again
        bad = int((~scores.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"scores of {bad} of {users} users contain NaN or infinity")
