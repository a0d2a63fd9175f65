"""Popularity: every user gets the items with the most training events."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch


class Popularity(nn.Module):
    """Score of item j = training events of j."""

    counts: Tensor  # (V+1,) float32

    def __init__(self, n_items: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(n_items + 1))

    def fit(self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        counts = training_counts(items, starts, stops, len(self.counts))
        self.counts.copy_(torch.from_numpy(counts))

    def score_block(self, batch: SequenceBatch, lo: int, hi: int) -> Tensor:
        return self.counts[lo:hi].expand(len(batch), -1)


def training_counts(
    items: np.ndarray, starts: np.ndarray, stops: np.ndarray, size: int
) -> np.ndarray:
    """(size,) int64: events of each item id in the training part."""
    edge = np.zeros(len(items) + 1, np.int64)  # +1 where a user's training part starts, -1 after it
    np.add.at(edge, starts, 1)
    np.add.at(edge, stops, -1)
    return np.bincount(items[edge.cumsum()[:-1] > 0], minlength=size)
