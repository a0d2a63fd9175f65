"""Cloze: hide some events of each sequence and predict them from the others (BERT4Rec).

The mean over the hidden events of the full softmax over V+1 rows. All randomness is torch's default
generator's.

A sequence is a row's inputs and the event after the last of them, its newest `max_length` events.
Where one row is a user's whole training part, every event of it can be hidden, the first too. Users
who fill several windows have each event hidden in one of them only, that whose target it is, and
never their very first one, which is no target.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.models.base import SequentialModel, item_bias, regulariser
from recblr.ops.cross_entropy import linear_cross_entropy


class Cloze:
    """Hides each event with probability `mask_ratio`, at least one of a sequence; or, of a share
    `last_ratio` of the sequences, the last event alone, which is what recommending asks for.

    Hidden events are always replaced by the mask token and always scored.

    usual: as RecBole. A sequence is a row's inputs without the event that follows, so a user's
    last training event is never learned. One draw decides for the whole batch whether only last
    events are hidden. At most int(mask_ratio * max_length) events of a row are scored, the newest;
    the others stay hidden. The oldest event is hidden but never scored. Nothing need be hidden.
    """

    # What is predicted is hidden from the model, so later events may be seen: a model that is not
    # causal trains on whole sequences without a leak.
    fills_in = True

    def __init__(self, mask_ratio: float = 0.2, last_ratio: float = 0.5, usual: bool = False):
        for name, ratio in (("mask_ratio", mask_ratio), ("last_ratio", last_ratio)):
            if not 0 <= ratio <= 1:
                raise ValueError(f"objective.{name}={ratio}: must be in [0, 1]")
        self.mask_ratio, self.last_ratio, self.usual = mask_ratio, last_ratio, usual

    def __call__(self, model: SequentialModel, batch: SequenceBatch) -> Tensor:
        if not hasattr(model, "mask_id"):
            raise ValueError(
                f"objective=cloze: {type(model).__name__} has no mask token (`mask_id`) to put in "
                "the place of a hidden item"
            )
        hidden = self.hide(batch, model.mask_id, model.max_length)
        rows = hidden.targets.nonzero().squeeze(1)
        representation, targets = model.encode(hidden)[rows], hidden.targets[rows]
        loss = linear_cross_entropy(representation, model.item_matrix(), targets, item_bias(model))
        return loss + regulariser(model)

    def hide(self, batch: SequenceBatch, mask_id: int, max_length: int) -> SequenceBatch:
        """The sequences with mask tokens; targets (N,): what they hide, 0 = not scored."""
        if self.usual:
            hidden, scored = self._choose_usual(batch, max_length)
        else:
            one_each = batch.one_target_per_sequence
            following = batch.targets if one_each else batch.targets[batch.last]
            learned = replace(batch, items=_learned(batch).long())
            learned = learned.with_one_more((following > 0).long(), full=max_length).items > 0
            batch = batch.with_one_more(following, full=max_length)
            hidden = scored = self._choose(batch, learned)
        items = batch.items.masked_fill(hidden, mask_id)
        return replace(batch, items=items, targets=batch.items * scored)

    def _choose(self, batch: SequenceBatch, learned: Tensor) -> Tensor:
        """(N,) bool: the events to hide, of those to be learned in this batch."""
        sequence, device = batch.sequence, batch.items.device
        draw = torch.rand(len(sequence), device=device).masked_fill(~learned, 1)
        least = draw.new_ones(len(batch)).scatter_reduce_(0, sequence, draw, "amin")
        anywhere = (draw < self.mask_ratio) | (draw == least[sequence])
        only_last = torch.rand(len(batch), device=device) < self.last_ratio
        return torch.where(only_last[sequence], _is_last(batch), anywhere)

    def _choose_usual(self, batch: SequenceBatch, max_length: int) -> tuple[Tensor, Tensor]:
        """(N,) bool each: the events to hide, and those of them to score."""
        limit = int(self.mask_ratio * max_length)
        if limit < 1:
            raise ValueError(
                f"objective.mask_ratio={self.mask_ratio}: objective.usual=true scores "
                f"int(mask_ratio * max_length) events of a row, 0 for max_length={max_length}"
            )
        if torch.rand(()) < self.last_ratio:
            hidden = _is_last(batch)
        else:
            hidden = torch.rand(len(batch.items), device=batch.items.device) < self.mask_ratio
        up_to = hidden.cumsum(0)
        after = up_to[batch.last][batch.sequence] - up_to  # (N,): hidden ones in its row
        return hidden, hidden & (after < limit) & (batch.place > 0)


def _learned(batch: SequenceBatch) -> Tensor:
    """(N,) bool: the inputs that are targets of the row, and the first before a first target."""
    if batch.one_target_per_sequence:
        return torch.ones_like(batch.items, dtype=torch.bool)
    is_target = batch.targets > 0
    before = torch.cat((is_target[:1], is_target[:-1]))
    return torch.where(batch.place == 0, is_target, before)


def _is_last(batch: SequenceBatch) -> Tensor:
    """(N,) bool: the last event of each sequence."""
    last = torch.zeros_like(batch.items, dtype=torch.bool)
    last[batch.last] = True
    return last
