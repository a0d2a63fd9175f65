import math

import pytest
import torch
from batches import batch_of, random_sequences, scramble
from equations import feed_forward, norm
from gradients import assert_same

from recblr.models.fmlprec import FilterLayer, FMLPRec

V = 30
LENGTHS = [5, 1, 2, 12, 3, 10, 1, 9]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
BOTH = pytest.mark.parametrize("slots", [12, 13])  # the last frequency of an even L is special


def tiny(slots=12, **changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 8, "n_layers": 2, "dropout": 0.0} | changes
    return scramble(FMLPRec(V, slots, **arguments)).double()


def circulant(weight, slots):
    """weight (L//2 + 1, D, 2) -> (D, L, L): what the filter does to the slots of each column.

    Cosines and sines of every frequency, all but the first and, for even L, the last counted twice.
    """
    real, imaginary = weight.unbind(2)
    frequency = torch.arange(len(real), dtype=torch.float64)
    angle = 2 * math.pi / slots * torch.outer(torch.arange(slots).double(), frequency)
    twice = torch.where((frequency == 0) | (2 * frequency == slots), 1.0, 2.0)
    kernel = (twice * angle.cos()) @ real - (twice * angle.sin()) @ imaginary  # (L, D)
    lag = (torch.arange(slots)[:, None] - torch.arange(slots)) % slots
    return kernel[lag].permute(2, 0, 1) / slots


def slot_by_slot(model, items):
    """items (B, L), 0 on the left -> (B, L, D): the equations, without a Fourier transform."""
    table = model.embedding.weight
    rows = torch.where(items[..., None] > 0, table[items], table[0].detach())  # no lookup trains 0
    x = norm(rows + model.positions.weight, model.norm)
    for layer in model.layers:
        matrix = circulant(layer.filter, items.shape[1])
        s = norm(x + torch.einsum("dtu,bud->btd", matrix, x), layer.filter_norm)
        x = norm(s + feed_forward(s, layer.pffn), layer.pffn_norm)
    return x


def on_the_left(sequences, slots):
    return torch.tensor([[0] * (slots - len(s)) + s for s in sequences])


@BOTH
@pytest.mark.parametrize("what", ["encode", "represent"])
def test_it_equals_the_equations_slot_by_slot(slots, what):
    model, sequences = tiny(slots), random_sequences(LENGTHS, V)
    batch, items = batch_of(sequences), on_the_left(sequences, slots)
    expected = slot_by_slot(model, items)
    expected = expected[:, -1] if what == "represent" else expected[items > 0]
    assert_same(getattr(model, what)(batch), expected, model)


@BOTH
def test_the_last_slot_is_computed_alone(slots):
    layer = scramble(FilterLayer(8, slots, 0.0)).double()
    x = torch.randn(5, slots, 8, dtype=torch.float64)
    torch.testing.assert_close(layer.last_slot(x), layer(x)[:, -1], **CLOSE)


@BOTH
@pytest.mark.parametrize("what", ["encode", "represent"])
def test_imaginary_parts_at_both_ends_of_the_spectrum_have_no_effect(slots, what):
    model, batch = tiny(slots), batch_of(random_sequences(LENGTHS, V))
    before = getattr(model, what)(batch)
    (before * torch.randn_like(before)).sum().backward()
    ends = [0, slots // 2] if slots % 2 == 0 else [0]
    inside = [f for f in range(slots // 2 + 1) if f not in ends]
    for layer in model.layers:
        assert not layer.filter.grad[ends, :, 1].any()
        assert layer.filter.grad[inside].all() and layer.filter.grad[ends, :, 0].all()
        with torch.no_grad():
            layer.filter[ends, :, 1] += 5
    torch.testing.assert_close(getattr(model, what)(batch), before, **CLOSE)


def test_empty_slots_reach_every_output():
    batch = batch_of(random_sequences([12, 11, 1], V))
    model, before = tiny(), tiny().represent(batch)
    with torch.no_grad():
        model.embedding.weight[0] = model.embedding.weight[5]
    changed = (model.represent(batch) != before).any(1)
    assert changed.tolist() == [False, True, True]


def test_the_newest_item_has_the_last_position():
    model, batch = tiny(), batch_of(random_sequences([3, 12], V))
    items = batch.items.clone()
    with torch.no_grad():
        model.positions.weight[-1] += model.embedding.weight[7] - model.embedding.weight[items[2]]
    other = batch_of([[*items[:2].tolist(), 7], items[3:].tolist()])
    torch.testing.assert_close(model.encode(batch)[:3], tiny().encode(other)[:3], **CLOSE)


def test_usual_starts_with_equal_filters_and_only_usual():
    first, second = FMLPRec(V, 12, usual=True).layers
    assert torch.equal(first.filter, second.filter)
    assert not torch.equal(first.pffn.inner.weight, second.pffn.inner.weight)
    first, second = FMLPRec(V, 12).layers
    assert not torch.equal(first.filter, second.filter)
