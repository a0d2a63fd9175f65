"""The highest of each row on any device and in any dtype: torch's own, with ties put in order."""

import torch
from torch import Tensor


def topk_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (B, min(k, width)) of scores (B, width), ties by column, NaN highest."""
    more = min(k + 1, scores.shape[1])  # one more than asked for shows a tie at the end
    values, columns = scores.topk(more)
    tied = values[:, 1:] == values[:, :-1]
    if tied.any():
        tied = (tied & (values[:, 1:] > -torch.inf)).any(1)
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered.values[:, :more], ordered.indices[:, :more]
    return values[:, :k], columns[:, :k]
