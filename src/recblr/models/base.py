"""What every model offers, and the one scoring function.

Shapes: N packed items, B sequences, V items, D' width of the representation.
A model sees batches and numbers: never a config, a data set or a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.nn import functional

from recblr.data.batch import SequenceBatch

PRODUCT_TILE = 64  # a multiple of the column tiles of the matrix products in use

# Rows and items (C,) int64, by row, each pair once, and what is added to their scores ().
Shifted = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class SequentialModel(Protocol):
    """A trained model. Score of an item = representation x item matrix (+ item bias), and for an
    item in the sequence (+ repeat bias).

    May also have `item_bias() -> (V+1,)`, `regulariser() -> scalar` that an objective adds,
    `repeat_bias`, a `blocks.RepeatBias` or None, and, if recurrent, `init_state(B)` and
    `step(items (B,), state) -> (representation (B, D'), state)`, which equals `encode`; one with a
    user table takes `init_state(B, user_ids (B,))`. It may have `step_in_place()`, which gives
    None, or a function of items 1..V and slots (B,), int64 arrays, of the parts of a state, each
    with a row per slot, which it moves on, and of a table that takes the representations. One that
    fills in masked items has `mask_id`, the token in their place, and `max_length` of a sequence.
    A constructor takes `n_items`, and `n_users` if it has a user table.
    """

    causal: bool  # the representation after a position depends on no later item

    def encode(self, batch: SequenceBatch) -> Tensor:
        """(N, D'): the representation after each position."""
        ...

    def represent(self, batch: SequenceBatch) -> Tensor:
        """(B, D'): the representation after each sequence."""
        ...

    def item_matrix(self) -> Tensor:
        """(V+1, D'); row 0 is padding: the softmax has it, no ranking does."""
        ...


@runtime_checkable
class BlockScorer(Protocol):
    """Scores a block of items without a representation of its own."""

    def score_block(self, batch: SequenceBatch, lo: int, hi: int) -> Tensor:
        """(B, hi - lo): scores of the items lo..hi-1 after each sequence."""
        ...


@runtime_checkable
class Floor(BlockScorer, Protocol):
    """A scorer that is counted, not trained: what any model has to beat."""

    def fit(self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        """Count. The training events of user u are `items[starts[u]:stops[u]]`, in order."""
        ...


Scorer = SequentialModel | BlockScorer


def item_bias(model: SequentialModel) -> Tensor | None:
    """(V+1,) or None: what a model adds to every score of an item."""
    return getattr(model, "item_bias", lambda: None)()


def regulariser(model: SequentialModel) -> Tensor | float:
    """What a model adds to every loss, or 0."""
    return getattr(model, "regulariser", lambda: 0.0)()


def repeat_bias(model: Scorer) -> Tensor | None:
    """Scalar or None: what a model adds to the scores of the items of a sequence."""
    bias = getattr(model, "repeat_bias", None)
    return None if bias is None else bias()


def block_scorer(model: Scorer, batch: SequenceBatch) -> Callable[[int, int], Tensor]:
    """`score(lo, hi) -> (B, hi - lo)`: scores of the items lo..hi-1 after each sequence."""
    if isinstance(model, BlockScorer):
        return partial(model.score_block, batch)
    by = repeat_bias(model)
    shifted = None if by is None else (*batch.met(batch.last), by)
    return scorer(model.represent(batch), model.item_matrix(), item_bias(model), shifted)


def scorer(
    representation: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    shifted: Shifted | None = None,
) -> Callable[[int, int], Tensor]:
    """`score(lo, hi) -> (B, hi - lo)` from representations (B, D') and what a model has of items.

    matrix (V+1, D'); zero rows below, PRODUCT_TILE of them at least, save a copy in each call.
    """

    def score(lo: int, hi: int) -> Tensor:
        # The product's last, incomplete tile sums in another order: items with equal rows would
        # not tie with the others. Other rows complete it.
        missing = (lo - hi) % PRODUCT_TILE
        rows = matrix[lo : hi + missing]
        if short := hi + missing - lo - len(rows):
            rows = functional.pad(rows, (0, 0, 0, short))
        scores = (representation @ rows.T)[:, : hi - lo]
        scores = scores if bias is None else scores + bias[lo:hi]
        if shifted is None:
            return scores
        row, item, by = shifted
        inside = (item >= lo) & (item < hi)
        return scores.index_put_((row[inside], item[inside] - lo), by, accumulate=True)

    return score
