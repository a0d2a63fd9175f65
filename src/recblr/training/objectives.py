"""Losses: `(model, batch) -> scalar`, the mean over the batch's targets."""

from __future__ import annotations

from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.models.base import SequentialModel, item_bias
from recblr.ops.cross_entropy import linear_cross_entropy


class CrossEntropy:
    """Full softmax over the V+1 rows of the item matrix, padding included, as released (eq. 2).

    Logits exist only where there is a target, a chunk at a time.
    """

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        if batch.one_target_per_sequence:
            representation, targets = model.represent(batch), batch.targets  # (B, D'), (B,)
        else:
            if not model.causal:
                raise ValueError(
                    f"target_mode=all_positions: {type(model).__name__} sees later items, so "
                    "targets inside the sequence would leak; use target_mode=prefix"
                )
            rows = batch.targets.nonzero().squeeze(1)
            representation, targets = model.encode(batch)[rows], batch.targets[rows]
        matrix, bias = model.item_matrix(), item_bias(model)
        return linear_cross_entropy(representation, matrix, targets, bias)
