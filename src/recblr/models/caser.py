"""Caser: convolutions over the embeddings of a user's last items.

Source: Tang, Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence
Embedding", WSDM 2018. For one window X (L, D), the embeddings of the last L items, oldest first:

    o_v     = sum_l w_(v,l) X[l] + b_v                        vertical, v = 1..n_v
    o_(k,f) = max_i ReLU(<W_(k,f), X[i : i+k]> + b_(k,f))     horizontal, k = 1..L, f = 1..n_h
    z       = ReLU(W1 Dropout([o_1; ..; o_(n_v); o_(1,1); o_(1,2); ..; o_(L,n_h)]) + b1)
    q       = ReLU(W2 [z; P_u] + b2),  score = q E^T

Shapes: N packed items, L = window, D = d_model, F = n_v D + n_h L features, V items, U users. Row
u + 1 is user u.

| symbol   | attribute                     | shape                                       |
| E        | embedding.weight              | (V+1, D)                                    |
| P        | user_embedding.weight         | (U+1, D)                                    |
| w, b     | vertical.{weight,bias}        | (n_v, L), (n_v,)                            |
| W_k, b_k | horizontal[k-1].{weight,bias} | (n_h, k D), (n_h,); the oldest item first   |
| W1, b1   | fc1.{weight,bias}             | (D, F), (D,); features in the order above   |
| W2, b2   | fc2.{weight,bias}             | (D, 2 D), (D,); columns of z first          |

Departures from the paper: as in the usual implementation, scores against the input embedding,
through W2 and a ReLU (so q >= 0), where the paper has an output matrix and bias for [z; P_u]; one
target per window, no skips; a sum of norms as regulariser.
Departures from the usual implementation (RecBole): a window is the last 5 items, with 16 filters of
each height, the authors' values; the slots that a shorter history leaves at the old end are zeros.
`usual=True` has windows of max_length items and 8 filters. It puts a shorter history at the old end
and fills up with the embedding of padding id 0, a random row that no lookup trains: short histories
see a constant block, and a slot says nothing about how old its item is. `window` and `n_h`, if
given, hold in both. User row 0, which RecBole never reads, is an unknown user (id -1) and starts as
zeros; a user without a training target keeps the random row it starts with, as there. The rest
starts as there: embeddings N(0, 1/D), fc1 and fc2 Xavier normal with biases 0,
filters as torch starts convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import check_dropout, check_sizes
from recblr.ops.dropout import Dropout

REGULARISATION = 1e-4


class Caser(nn.Module):
    """Caser over items 1..n_items and users 0..n_users-1.

    window: items that a prediction sees; None = 5, or max_length if usual. n_h: horizontal filters
    of each height; None = 16, or 8 if usual. n_v: vertical filters.
    """

    causal = True

    def __init__(
        self,
        n_items: int,
        n_users: int,
        max_length: int,
        d_model: int = 64,
        window: int | None = None,
        n_h: int | None = None,
        n_v: int = 4,
        dropout: float = 0.4,
        usual: bool = False,
    ):
        super().__init__()
        if window is None:
            window = max_length if usual else 5
        if n_h is None:
            n_h = 8 if usual else 16
        check_sizes(d_model=d_model, window=window, n_h=n_h, n_v=n_v)
        check_dropout(dropout)
        self.window, self.usual = window, usual
        self.user_embedding = nn.Embedding(n_users + 1, d_model)
        self.embedding = nn.Embedding(n_items + 1, d_model)
        # Linear layers on flat windows start as the convolutions that they are.
        self.vertical = nn.Linear(window, n_v)
        self.horizontal = nn.ModuleList(nn.Linear(k * d_model, n_h) for k in range(1, window + 1))
        self.dropout = Dropout(dropout)
        self.fc1 = nn.Linear(n_v * d_model + n_h * window, d_model)
        self.fc2 = nn.Linear(2 * d_model, d_model)
        for table in (self.user_embedding, self.embedding):
            nn.init.normal_(table.weight, std=1 / d_model)
        with torch.no_grad():
            self.user_embedding.weight[0] = 0  # the unknown user
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def regulariser(self) -> Tensor:
        """The sum of L2 norms, not squared, as the usual implementation adds it to the loss."""
        layers = (self.user_embedding, self.embedding, self.vertical, self.fc1, self.fc2)
        return REGULARISATION * sum(layer.weight.norm() for layer in (*layers, *self.horizontal))

    def encode(self, batch: SequenceBatch) -> Tensor:
        sequence = batch.sequence
        if self.usual:
            rows = torch.arange(len(sequence), device=sequence.device)
            return self._predict(self._last_windows(batch, rows, sequence), batch, sequence)
        # Windows one item apart share most products: all sequences lie in one strip, each behind
        # L-1 rows of zeros. Windows that begin in one sequence and end in the next are not read.
        gap = self.window - 1
        place = torch.arange(len(sequence), device=sequence.device) + gap * (sequence + 1)
        x = self.embedding(batch.items)
        strip = x.new_zeros(len(x) + gap * len(batch), x.shape[1]).index_copy(0, place, x)
        features = self._convolve(strip[None])[0].index_select(0, place - gap)
        return self._predict(features, batch, sequence)

    def represent(self, batch: SequenceBatch) -> Tensor:
        sequence = torch.arange(len(batch), device=batch.items.device)
        return self._predict(self._last_windows(batch, batch.last, sequence), batch, sequence)

    def _last_windows(self, batch: SequenceBatch, rows: Tensor, sequence: Tensor) -> Tensor:
        """Features (R, F) of the windows that end at the packed rows (R,) of the sequences (R,)."""
        starts = batch.cu_seqlens[sequence]
        oldest = rows - self.window + 1
        if self.usual:
            oldest = torch.maximum(oldest, starts)
        index = oldest[:, None] + torch.arange(self.window, device=rows.device)  # (R, L)
        real = (index >= starts[:, None]) & (index <= rows[:, None])
        items = torch.where(real, batch.items[index.clamp(0, len(batch.items) - 1)], 0)
        x = F.embedding(items, self.embedding.weight, padding_idx=0)  # (R, L, D)
        return self._convolve(x if self.usual else x * real[..., None])[:, 0]

    def _convolve(self, x: Tensor) -> Tensor:
        """Strips (S, M, D) -> features (S, M-L+1, F) of their windows, F = n_v D + n_h L."""
        vertical = self.vertical(x.unfold(1, self.window, 1))  # (S, M-L+1, D, n_v)
        out = [vertical.mT.flatten(2)]
        for k, layer in enumerate(self.horizontal, 1):
            kernel = layer.weight.unflatten(1, (k, -1)).mT  # (n_h, D, k)
            scores = F.conv1d(x.mT, kernel, layer.bias)  # (S, n_h, M-k+1)
            out.append(F.relu(F.max_pool1d(scores, self.window - k + 1, stride=1)).mT)
        return torch.cat(out, 2)

    def _predict(self, features: Tensor, batch: SequenceBatch, sequence: Tensor) -> Tensor:
        """Features (R, F) of windows of the sequences (R,) -> (R, D)."""
        z = F.relu(self.fc1(self.dropout(features)))
        users = self.user_embedding(batch.user_ids + 1).index_select(0, sequence)
        return F.relu(self.fc2(torch.cat((z, users), 1)))
