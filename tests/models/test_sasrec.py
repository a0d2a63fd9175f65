import pytest
import torch
from batches import batch_of, random_sequences, scramble
from equations import transformer
from gradients import assert_same

from recblr.models.sasrec import SASRec

V, LONGEST = 30, 40
LENGTHS = [5, 1, 2, 40, 3, 17, 1, 9]


def tiny(**changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 12, "n_layers": 2, "n_heads": 3, "dropout": 0.0} | changes
    return scramble(SASRec(V, LONGEST, **arguments)).double()


@pytest.mark.parametrize("what", ["encode", "represent"])
@pytest.mark.parametrize("changes", [{}, {"n_heads": 1, "n_layers": 1}])
def test_packed_equals_the_equations_on_a_padded_batch(what, changes):
    model, batch = tiny(**changes), batch_of(random_sequences(LENGTHS, V))
    items = batch.padded("right")
    expected = transformer(model, items)[items > 0]
    expected = expected[batch.last] if what == "represent" else expected
    assert_same(getattr(model, what)(batch), expected, model)


def test_positions_count_from_the_oldest_item():
    model, batch = tiny(), batch_of([[1, 2, 3, 4, 5, 6], [7, 8]])
    with torch.no_grad():
        model.positions.weight[5] += 1
    changed = (model.encode(batch) != tiny().encode(batch)).any(1)
    assert changed.tolist() == [False] * 5 + [True] + [False] * 2


@pytest.mark.parametrize("what", ["encode", "represent"])
def test_dropout_also_acts_on_the_attention_weights(what, monkeypatch):
    model, batch = tiny(dropout=0.5), batch_of(random_sequences(LENGTHS, V))
    for module in model.modules():
        if hasattr(module, "dropout"):  # all others off
            monkeypatch.setattr(module.dropout, "forward", lambda x: x)
    one, other = (getattr(model, what)(batch) for _ in range(2))
    moved = (one != other).any(1)
    assert moved.sum() > len(moved) / 2
