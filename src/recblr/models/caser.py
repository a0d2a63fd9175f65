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
            return self._predict(self._padded_windows(batch), batch, sequence)
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
        if self.usual:
            features = self._padded_windows(batch)[batch.last]
        else:
            x = self._windows(batch, batch.last - self.window + 1, batch.last, sequence)
            features = self._convolve(x)[:, 0]
        return self._predict(features, batch, sequence)

    def _windows(
        self, batch: SequenceBatch, first: Tensor, last: Tensor, sequence: Tensor
    ) -> Tensor:
        """L embeddings (R, L, D) from the packed rows `first` (R,) on.

        Slots before the sequence are zeros, slots after `last` (R,) are the padding row if usual.
        """
        index = first[:, None] + torch.arange(self.window, device=first.device)  # (R, L)
        real = (index >= batch.cu_seqlens[sequence][:, None]) & (index <= last[:, None])
        items = torch.where(real, batch.items[index.clamp(0, len(batch.items) - 1)], 0)
        x = F.embedding(items, self.embedding.weight, padding_idx=0)
        return x if self.usual else x * real[..., None]

    def _padded_windows(self, batch: SequenceBatch) -> Tensor:
        """Features (N, F) of the windows, filled up with padding, that end at every packed row.

        A filter that begins at an item has read until row t what it had read until row t - 1 and
        one product more; the slots after t are padding, whose part is the same for all. Step n is
        for the filters that begin at the n-th newest item (0: at padding). Rows lie in the order
        of their position, the last first: those that have n items are the first `rows_with[n]`.
        """
        n_heights, n_h = len(self.horizontal), self.horizontal[0].out_features
        rows = torch.arange(len(batch.items), device=batch.items.device)
        position = rows - batch.cu_seqlens[batch.sequence]  # (N,)
        items = 1 + position.clamp(max=self.window - 1)  # in the window of each row
        x = self._windows(batch, rows - items + 1, rows, batch.sequence)  # (N, L, D)
        vertical = self.vertical(x.mT).mT.flatten(1)  # (N, n_v D)

        order = position.argsort(descending=True, stable=True)
        place = torch.empty_like(order).index_copy(0, order, rows)
        before = place[(order - 1).clamp(min=0)]  # where the row of one item less lies
        counts = torch.bincount(items, minlength=self.window + 2)
        rows_with = counts.flip(0).cumsum(0).flip(0).tolist()
        padding = (self.window - items)[order]  # slots
        x = self.embedding(batch.items[order])

        kernels = torch.stack(
            [
                F.pad(layer.weight.unflatten(1, (k, -1)), (0, 0, 0, self.window - k))
                for k, layer in enumerate(self.horizontal, 1)
            ]
        )  # (K, n_h, L, D), K = L heights
        on_padding = kernels @ self.embedding.weight[0].detach()  # (K, n_h, L)
        on_padding = F.pad(on_padding, (0, 1)).flip(2).cumsum(2).flip(2)  # of slots n, n + 1, ..
        heights = torch.arange(1, n_heights + 1, device=rows.device)

        read = x.new_zeros(len(x), n_heights, n_h)
        best, done = torch.full_like(read, -torch.inf), []
        for n in range(self.window + 1):
            many = rows_with[n]
            if n > 0:
                product = x[:many] @ kernels[:, :, n - 1].flatten(0, 1).T  # (many, K n_h)
                read = product.view(-1, n_heights, n_h) + read.index_select(0, before[:many])
            outside = heights > n + padding[:many, None]  # (many, K)
            scores = (read + on_padding[..., n]).masked_fill(outside[..., None], -torch.inf)
            best = torch.maximum(best, scores)
            done.append(best[rows_with[n + 1] :])
            best = best[: rows_with[n + 1]]
        horizontal = torch.cat(done[::-1])[place]
        horizontal = F.relu(horizontal + torch.stack([layer.bias for layer in self.horizontal]))
        return torch.cat((vertical, horizontal.flatten(1)), 1)

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
