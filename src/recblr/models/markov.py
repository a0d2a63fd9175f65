"""First-order Markov chain: how often did an item follow the last one?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.popularity import training_counts


class Markov(nn.Module):
    """Score of item j after item i = training pairs (i, j) + popularity(j) / (2 max popularity).

    The second term is below one pair: it only orders items with equal counts, unseen ones too.
    """

    tie_break: Tensor  # (V+1,) float32, in [0, 1/2]
    row: Tensor  # (V+2,) int64: the pairs of item i are row[i]..row[i+1]-1
    successor: Tensor  # (P,) int64, ascending within a row
    pairs: Tensor  # (P,) float32

    def __init__(self, n_items: int):
        super().__init__()
        self.n_items = n_items
        self.register_buffer("tie_break", torch.zeros(n_items + 1))
        self.register_buffer("row", torch.zeros(n_items + 2, dtype=torch.int64))
        self.register_buffer("successor", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("pairs", torch.zeros(0))

    def fit(self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        size = self.n_items + 1
        popularity = training_counts(items, starts, stops, size)
        follows = np.zeros(len(items) + 1, np.int64)  # > 0 where the next event is a training event
        np.add.at(follows, starts, 1)
        np.add.at(follows, np.maximum(stops - 1, starts), -1)
        position = np.flatnonzero(follows.cumsum()[:-1] > 0)
        pair = items[position].astype(np.int64) * size + items[position + 1]
        pair, count = np.unique(pair, return_counts=True)
        rows = np.bincount(pair // size, minlength=size)
        device = self.tie_break.device
        self.row = torch.from_numpy(np.concatenate([[0], rows.cumsum()])).to(device)
        self.successor = torch.from_numpy(pair % size).to(device)
        self.pairs = torch.from_numpy(count.astype(np.float32)).to(device)
        self.tie_break.copy_(torch.from_numpy(popularity / max(1, 2 * popularity.max())))

    def score_block(self, batch: SequenceBatch, lo: int, hi: int) -> Tensor:
        last_item = batch.items[batch.last]
        begin, count = self.row[last_item], self.row[last_item + 1] - self.row[last_item]  # (B,)
        sequence = torch.repeat_interleave(torch.arange(len(batch), device=count.device), count)
        within = (
            torch.arange(len(sequence), device=count.device) - (count.cumsum(0) - count)[sequence]
        )
        entry = begin[sequence] + within
        column = self.successor[entry] - lo
        inside = (column >= 0) & (column < hi - lo)
        scores = self.tie_break[lo:hi].repeat(len(batch), 1)
        scores[sequence[inside], column[inside]] += self.pairs[entry[inside]]
        return scores
