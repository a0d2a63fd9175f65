"""Losses: `(model, batch) -> scalar`, the mean over the batch's targets.

A model's `regulariser()`, if it has one, is added. Negatives are uniform over the items but the
row's target, as RecBole's: one may be in the user's history. They are drawn from torch's default
generator, which every epoch seeds anew: seed, epoch and what is drawn before them fix them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.models.base import SequentialModel, Shifted, item_bias, regulariser, repeat_bias
from recblr.ops.cross_entropy import linear_cross_entropy

AHEAD = 3  # targets of a position at most, with `ahead_weight`


class CrossEntropy:
    """Full softmax over the V+1 rows of the item matrix, padding included, as released (eq. 2).

    Logits exist only where there is a target, a chunk at a time.

    ahead_weight w: a position is also to predict what comes after the next item. Its loss is
    sum_k w^(k-1) CE_k / sum_k w^(k-1) over the next AHEAD targets of its sequence; 0, the paper's,
    leaves the first. Ours; PinnerFormer (Pancha et al., KDD 2022) predicts all later actions alike.
    Where a row has one target there is nothing after it.
    """

    fills_in = False  # predicts what comes next: at every position only if the model is causal
    learns_repeat_bias = True

    def __init__(self, ahead_weight: float = 0.0):
        if not 0 <= ahead_weight <= 1:
            raise ValueError(f"ahead_weight={ahead_weight}: must be in 0..1")
        self.ahead_weight = ahead_weight

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        representation, targets = at_targets(model, batch)
        rows, matrix, bias = target_rows(batch), model.item_matrix(), item_bias(model)
        by = repeat_bias(model)
        shifted = None if by is None else (*batch.met(rows), by)
        loss = linear_cross_entropy(representation, matrix, targets, bias, shifted=shifted)
        if self.ahead_weight and not batch.one_target_per_sequence:
            targets = batch.targets_ahead(rows, AHEAD)
            loss = loss + self._spread(representation, matrix, bias, shifted, targets)
        return loss + regulariser(model)

    def _spread(
        self,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        shifted: Shifted | None,
        targets: Tensor,
    ) -> Tensor:
        """What the loss gains where the first of targets (M, AHEAD) become all, weighted.

        Every CE of a row has one log-sum-exp: what differs is the scores of the targets.
        """
        scores = _score(x[:, None], matrix, bias, targets)
        if shifted is not None:
            row, item, by = shifted
            index = torch.arange(len(targets), device=targets.device)[:, None]
            met = torch.isin(index * len(matrix) + targets, row * len(matrix) + item)
            scores = scores + by * met
        steps = torch.arange(AHEAD, device=x.device, dtype=x.dtype)
        weights = self.ahead_weight**steps * (targets > 0)  # (M, AHEAD)
        weights = weights / weights.sum(1, keepdim=True)
        return (scores[:, 0] - (weights * scores).sum(1)).sum() / max(len(targets), 1)


class BPR:
    """-log sigmoid(s+ - s-) with one uniform negative a target (Rendle et al., UAI 2009).

    RecBole adds 1e-10 inside the logarithm; `logsigmoid` needs nothing there.
    """

    fills_in = False

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        positive, negative = pair_scores(model, batch)
        return -F.logsigmoid(positive - negative).mean() + regulariser(model)


class BCE:
    """-log sigmoid(s+) - log(1 - sigmoid(s-)), one uniform negative a target (SASRec, eq. 6).

    The authors of SASRec and FMLP-Rec draw it outside the user's items, and the latter add 1e-24
    inside the logarithms.
    """

    fills_in = False

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        positive, negative = pair_scores(model, batch)
        loss = -F.logsigmoid(positive) - F.logsigmoid(-negative)
        return loss.mean() + regulariser(model)


class SampledSoftmax:
    """Softmax over the target and `n_negatives` items that the whole batch shares.

    Items are drawn uniformly, with replacement, and their scores lowered by log Q, the log of how
    often each is expected in the sample (Bengio and Senecal, 2008): the denominator is then an
    unbiased estimate of the full softmax over the V items. A draw that is the row's target counts
    for nothing in that row.
    """

    fills_in = False

    def __init__(self, n_negatives: int = 1000):
        if n_negatives < 1:
            raise ValueError(f"objective.n_negatives={n_negatives}: must be 1 or more")
        self.n_negatives = n_negatives

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        representation, targets = at_targets(model, batch)  # (M, D'), (M,)
        matrix, bias = model.item_matrix(), item_bias(model)
        n_items = len(matrix) - 1
        drawn = torch.randint(1, n_items + 1, (self.n_negatives,), device=targets.device)  # (K,)
        log_q = math.log(self.n_negatives / n_items)
        negative = representation @ F.embedding(drawn, matrix).T - log_q  # (M, K)
        positive = _score(representation, matrix, bias, targets)
        if bias is not None:
            negative = negative + bias[drawn]
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)
        total = torch.cat([positive[:, None], negative], 1).float().logsumexp(1)
        return (total - positive).mean() + regulariser(model)


def at_targets(model: SequentialModel, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """Representations (M, D') before the batch's M targets, and the targets (M,).

    ValueError for targets inside a sequence whose model sees later items.
    """
    if batch.one_target_per_sequence:
        return model.represent(batch), batch.targets
    if not model.causal:
        raise ValueError(leak(model))
    rows = target_rows(batch)
    return model.encode(batch)[rows], batch.targets[rows]


def target_rows(batch: SequenceBatch) -> Tensor:
    """(M,) int64: the packed row that each of the batch's M targets follows."""
    if batch.one_target_per_sequence:
        return batch.last
    return batch.targets.nonzero().squeeze(1)


def leak(model: SequentialModel) -> str:
    """Why a model that is not causal cannot train at all positions."""
    return (
        f"target_mode=all_positions: {type(model).__name__} sees later items, so targets inside "
        "the sequence would leak; use target_mode=prefix"
    )


def pair_scores(model: SequentialModel, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """Scores (M,) of the targets, and of one other item each, drawn uniformly from the rest."""
    representation, targets = at_targets(model, batch)
    matrix, bias = model.item_matrix(), item_bias(model)
    if len(matrix) < 3:
        raise ValueError("this objective draws other items than the target: it needs 2 items")
    drawn = torch.randint(1, len(matrix) - 1, targets.shape, device=targets.device)
    drawn += drawn >= targets  # 1..V without the target, evenly
    return (
        _score(representation, matrix, bias, targets),
        _score(representation, matrix, bias, drawn),
    )


def _score(representation: Tensor, matrix: Tensor, bias: Tensor | None, items: Tensor) -> Tensor:
    """Scores of items (M,) for `representation` (M, D'), or of (M, K) for (M, 1, D')."""
    score = (representation * F.embedding(items, matrix)).sum(-1)
    return score if bias is None else score + bias[items]
