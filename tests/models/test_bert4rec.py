import pytest
import torch
from batches import batch_of, random_sequences, scramble
from equations import gelu, norm, transformer
from gradients import assert_same

from recblr.models.bert4rec import BERT4Rec

V, LONGEST = 30, 20
MASK = V + 1
LENGTHS = [5, 1, 2, 20, 3, 17, 1, 9]


def tiny(**changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 12, "n_layers": 2, "n_heads": 3, "dropout": 0.0} | changes
    return scramble(BERT4Rec(V, LONGEST, **arguments)).double()


def scores(model, sequences):
    return model.represent(batch_of(sequences)) @ model.item_matrix().T + model.item_bias()


def padded_encode(model, items):
    """items (B, T), 0 on the right -> (B, T, D)."""
    inner = gelu(transformer(model, items) @ model.head.weight.T + model.head.bias)
    return norm(inner, model.head_norm)


def test_encode_equals_the_equations_on_a_padded_batch():
    model, sequences = tiny(), random_sequences(LENGTHS, V)
    for sequence in sequences[::2]:
        sequence[-1] = MASK
    sequences[3][4] = MASK
    batch = batch_of(sequences)
    items = batch.padded("right")
    assert_same(
        model.encode(batch), padded_encode(model, items)[items > 0], model, without=["bias"]
    )


@pytest.mark.parametrize("usual", [False, True])
def test_a_mask_follows_the_history_and_its_row_is_scored(usual):
    model, sequences = tiny(usual=usual), random_sequences(LENGTHS, V)
    items = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.int64)
    for row, sequence in zip(items, sequences):
        kept = [*sequence, MASK][1 if usual or len(sequence) == LONGEST else 0 :]
        row[: len(kept)] = torch.tensor(kept)
    rows = (items > 0).sum(1) - 1
    expected = padded_encode(model, items)[range(len(rows)), rows]
    expected = expected @ model.embedding.weight[: V + 1].T + model.bias
    assert_same(scores(model, sequences), expected, model)


def test_usual_forgets_the_oldest_item_and_only_usual():
    model, usual = tiny(), tiny(usual=True)
    forgets = torch.tensor([False, False, True])  # only a full history, for lack of room
    one, other = ([[item], [item, 9], [item, *range(1, 20)]] for item in (5, 6))
    changed = (scores(model, one) != scores(model, other)).any(1)
    assert torch.equal(changed, ~forgets)
    assert torch.equal(scores(usual, one), scores(usual, other))


def test_usual_shifts_every_position_by_one():
    history = [3, 8, 1, 7]
    shifted = scores(tiny(), [history[1:]])
    torch.testing.assert_close(scores(tiny(usual=True), [history]), shifted)
    full = random_sequences([LONGEST], V)  # where the oldest has to go, both do the same
    assert torch.equal(scores(tiny(usual=True), full), scores(tiny(), full))


def test_the_mask_is_no_item():
    model = tiny()
    assert model.mask_id == MASK
    assert torch.equal(model.item_matrix(), model.embedding.weight[:MASK])
    before = model.represent(batch_of([[4, 5]]))
    with torch.no_grad():
        model.embedding.weight[MASK] += 1
    assert not torch.equal(model.represent(batch_of([[4, 5]])), before)
