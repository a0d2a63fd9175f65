"""The highest of each row on the CPU, in float32: one pass that compares with the k-th so far."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from recblr.ops.threads import call

LANES = 256  # scores that are compared before any is looked at
FEW = 8  # rows that one thread searches before another has woken up


@njit(cache=True)
def count_above(row, last):
    """How many are not at most `last`: NaN is above all."""
    count = np.int32(0)
    for j in range(row.size):
        count += np.int32(not row[j] <= last)
    return count


@njit(cache=True)
def insert(score, column, place, best, where):
    """Move what is lower than `score` down from `place`, the end of `best`, and put it there."""
    while place > 0 and not score <= best[place - 1] and best[place - 1] == best[place - 1]:
        best[place], where[place] = best[place - 1], where[place - 1]
        place -= 1
    best[place], where[place] = score, column


@njit(cache=True)
def search(row, best, where):
    """Keep what is above the last kept: equal scores stay in order, NaN comes first."""
    k = best.size
    for j in range(k):
        insert(row[j], j, j, best, where)
    for start in range(k, row.size, LANES):
        stop = min(start + LANES, row.size)
        if count_above(row[start:stop], best[k - 1]):
            for j in range(start, stop):
                if not row[j] <= best[k - 1] and best[k - 1] == best[k - 1]:
                    insert(row[j], j, k - 1, best, where)


# Row b is the `width` scores that follow flat[b * step].


@njit(cache=True)
def serial(flat, width, step, values, columns):
    for b in range(len(values)):
        search(flat[b * step : b * step + width], values[b], columns[b])


@njit(parallel=True, cache=True)
def parallel(flat, width, step, values, columns):
    for b in prange(len(values)):
        search(flat[b * step : b * step + width], values[b], columns[b])


def topk_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (B, min(k, width)) of scores (B, width), ties by column, NaN highest.

    float32 on the CPU, k of 1 or more.
    """
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    rows, width = scores.shape
    step = scores.stride(0)
    flat = scores.as_strided(((rows - 1) * step + width if rows else 0,), (1,))
    values = scores.new_empty(rows, min(k, width))
    columns = torch.empty(values.shape, dtype=torch.int64)
    if rows <= FEW:  # waits for no other thread's kernel
        serial(flat.detach().numpy(), width, step, values.detach().numpy(), columns.numpy())
    else:
        call(parallel, flat, width, step, values, columns)
    return values, columns
