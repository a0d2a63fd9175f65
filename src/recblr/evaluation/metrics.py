"""Exact HR, NDCG and MRR from rank counts.

A user has one relevant item. `higher` items score strictly higher than it, `equal` others have
the same score. Ties are broken at random in expectation: the rank is uniform on
higher + 1 .. higher + equal + 1, and each metric is its exact mean over those ranks. So a
constant scorer gets chance level, whatever the order in which items are stored.

    HR@K = [rank <= K]    NDCG@K = [rank <= K] / log2(rank + 1)    MRR@K = [rank <= K] / rank
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

CUTOFFS = (10, 20)


def expected_metrics(higher: Tensor, equal: Tensor, k: int) -> dict[str, Tensor]:
    """Per-user expectations, float64 (B,), from int64 counts `higher` and `equal` (B,)."""
    rank = torch.arange(1, k + 1, dtype=torch.float64, device=higher.device)
    ties = (equal + 1).double()
    first = higher.clamp(max=k)  # ranks before the first possible one
    last = (higher + equal + 1).clamp(max=k)

    def mean_gain(gain: Tensor) -> Tensor:
        cumulative = torch.cat([gain.new_zeros(1), gain.cumsum(0)])  # (k + 1,)
        return (cumulative[last] - cumulative[first]) / ties

    return {
        f"hr@{k}": (last - first).double() / ties,
        f"ndcg@{k}": mean_gain(1 / torch.log2(rank + 1)),
        f"mrr@{k}": mean_gain(1 / rank),
    }


class RankingMetrics(Metric):
    """Means over users of HR, NDCG and MRR at 10 and 20; sums in float64, so they add up."""

    full_state_update = False
    users: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"{metric}@{k}" for k in CUTOFFS for metric in ("hr", "ndcg", "mrr")]
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("totals", zeros, dist_reduce_fx="sum")
        self.add_state("users", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.totals: Tensor

    def update(self, higher: Tensor, equal: Tensor) -> None:
        """Add users by their rank counts, int64 (B,) each."""
        values: dict[str, Tensor] = {}
        for k in CUTOFFS:
            values |= expected_metrics(higher, equal, k)
        self.totals += torch.stack([values[name].sum() for name in self.names])
        self.users += len(higher)

    def compute(self) -> dict[str, Tensor]:
        """`{"hr@10": .., "ndcg@10": .., ..}`, float64 scalars.

        Raises ValueError when no user was added: a mean over nobody is no figure.
        """
        if self.users == 0:
            raise ValueError("no user to evaluate: every user has fewer than 3 interactions")
        return dict(zip(self.names, self.totals / self.users))
