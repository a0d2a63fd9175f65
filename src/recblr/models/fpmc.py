"""FPMC: factorised personal Markov chains, for one item at a time.

Source: Rendle, Freudenthaler, Schmidt-Thieme, "Factorizing Personalized Markov Chains for
Next-Basket Recommendation", WWW 2010.

    score(u, l, j) = UI[u] . IU[j] + LI[l] . IL[j]      user u, last item l, next item j
                   = [UI[u]; LI[l]] . [IU[j]; IL[j]]    representation x item matrix

Shapes: N packed items, B sequences, D = d_model, V items, U users. Row u + 1 is user u.

| symbol | attribute             | shape    |
| UI     | user_item.weight      | (U+1, D) |
| IU     | item_user.weight      | (V+1, D) |
| LI     | last_item.weight      | (V+1, D) |
| IL     | item_last.weight      | (V+1, D) |

Departures from the paper: a basket is one item, so LI[l] stands for the mean over a basket; no L2
term in the loss, only the optimiser's `weight_decay`.
Departures from the usual implementation (RecBole): none in the function, so `usual` changes
nothing.
Its user row 0, which it never reads, is here an unknown user (id -1) and starts as zeros: a score
from the last item alone. A user without a training target keeps the random row it starts with, as
there. Trained by BPR on one uniform negative, as there; under the full softmax
(`objective=cross_entropy`) it is another model. Xavier normal tables, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import check_sizes


class FPMC(nn.Module):
    """FPMC over items 1..n_items and users 0..n_users-1."""

    causal = True

    def __init__(self, n_items: int, n_users: int, d_model: int = 64, usual: bool = False):
        super().__init__()
        check_sizes(d_model=d_model)
        self.user_item = nn.Embedding(n_users + 1, d_model)
        self.item_user = nn.Embedding(n_items + 1, d_model)
        self.last_item = nn.Embedding(n_items + 1, d_model)
        self.item_last = nn.Embedding(n_items + 1, d_model)
        for table in (self.user_item, self.item_user, self.last_item, self.item_last):
            nn.init.xavier_normal_(table.weight)
        with torch.no_grad():
            self.user_item.weight[0] = 0  # the unknown user

    def item_matrix(self) -> Tensor:
        return torch.cat((self.item_user.weight, self.item_last.weight), 1)

    def encode(self, batch: SequenceBatch) -> Tensor:
        users = torch.repeat_interleave(
            self._users(batch.user_ids), batch.lengths, 0, output_size=len(batch.items)
        )
        return torch.cat((users, self.last_item(batch.items)), 1)

    def represent(self, batch: SequenceBatch) -> Tensor:
        return torch.cat((self._users(batch.user_ids), self.last_item(batch.items[batch.last])), 1)

    def init_state(self, batch_size: int, user_ids: Tensor | None = None) -> Tensor:
        """UI of the users (B, D); without ids, of unknown ones."""
        if user_ids is None:
            user_ids = torch.full((batch_size,), -1, device=self.user_item.weight.device)
        return self._users(user_ids)

    def step(self, items: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One item (B,) of each of B users: representation (B, 2D) and the same state."""
        return torch.cat((state, self.last_item(items)), 1), state

    def _users(self, user_ids: Tensor) -> Tensor:
        return self.user_item(user_ids + 1)
