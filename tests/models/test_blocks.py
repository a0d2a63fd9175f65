import pytest
import torch
from batches import batch_of, random_sequences
from equations import attend
from gradients import assert_same
from hypothesis import example, given
from hypothesis import strategies as st

from recblr.models.blocks import (
    AttentionLayer,
    Rectangles,
    last_attention,
    packed_attention,
)

LENGTHS = [5, 1, 2, 33, 3, 9, 17, 1, 64, 8, 40]
ALMOST_NONE = 1e-13  # a dropout that drops nothing, but takes the way that one takes


def batch_like(lengths):
    return batch_of(random_sequences(lengths, 30))


def textbook(qkv, lengths, n_heads, causal):
    """Each sequence alone, each head alone."""
    outputs = []
    for rows in qkv.split(lengths):
        visible = torch.ones(len(rows), len(rows), dtype=torch.bool)
        outputs.append(attend(*rows.chunk(3, 1), n_heads, visible.tril() if causal else visible))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("p", [0.0, ALMOST_NONE])
@pytest.mark.parametrize("n_heads", [1, 3])
def test_packed_attention_is_each_sequences_own(causal, p, n_heads):
    batch = batch_like(LENGTHS)
    qkv = 2 * torch.randn(sum(LENGTHS), 36, dtype=torch.float64)
    qkv.requires_grad_()
    got = packed_attention(qkv, Rectangles.of(batch, n_heads), causal, p)
    expected = textbook(qkv, LENGTHS, n_heads, causal)
    assert_same(got, expected, {"qkv": qkv})


@pytest.mark.parametrize("p", [0.0, ALMOST_NONE])
def test_attention_of_the_last_rows_is_that_of_all_rows_there(p):
    batch = batch_like(LENGTHS)
    qkv = 2 * torch.randn(sum(LENGTHS), 24, dtype=torch.float64)
    qkv.requires_grad_()
    expected = packed_attention(qkv, Rectangles.of(batch, 2), False, p)[batch.last]
    got = last_attention(qkv[batch.last, :8], qkv[:, 8:], batch, 2, p)
    assert_same(got, expected, {"qkv": qkv})


def test_large_scores_overflow_nowhere():
    batch = batch_like([3, 1, 12])
    qkv = 300 * torch.randn(16, 12)  # scores of about 2e5
    exact = textbook(qkv.double(), [3, 1, 12], 2, causal=False)
    packed = packed_attention(qkv, Rectangles.of(batch, 2), False, 0.0)
    last = last_attention(qkv[batch.last, :4], qkv[:, 4:], batch, 2, 0.0)
    torch.testing.assert_close(packed.double(), exact, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(last.double(), exact[batch.last], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("way", ["packed", "last"])
def test_dropout_drops_weights_and_keeps_their_mean(way):
    batch = batch_like([20] * 500)
    qkv = torch.randn(10_000, 12)
    qkv[:, 8:] = 1.0  # values: an output is then the sum of the weights that are left
    if way == "packed":
        sums = packed_attention(qkv, Rectangles.of(batch, 2), False, 0.25)
    else:
        sums = last_attention(qkv[batch.last, :4], qkv[:, 4:], batch, 2, 0.25)
    assert sums.mean().item() == pytest.approx(1, abs=0.02)
    assert sums.std() > 0.05
    assert torch.equal(sums[:, 0], sums[:, 1])  # one mask for a whole row of values
    assert not torch.equal(sums[:, 0], sums[:, 2])  # another for another head


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=12), n_heads=st.integers(1, 3))
@example([1, 2, 3, 4, 5, 8, 9, 16, 17], 2)
def test_a_rectangle_is_less_than_twice_as_long_as_its_sequences_but_for_the_shortest(
    lengths, n_heads
):
    shapes, inside, place = Rectangles.of(batch_like(lengths), n_heads)
    assert len(shapes) == len({max(4, 1 << (length - 1).bit_length()) for length in lengths})
    for (sequences, longest), own in zip(shapes, inside, strict=True):
        assert (sequences, longest) == (len(own), own.max())
        assert longest < max(5, 2 * own.min())
    assert sorted(torch.cat(inside).tolist()) == sorted(lengths)
    assert len(place.unique()) == n_heads * sum(lengths)
    assert place.min() >= 0 and place.max() < sum(n_heads * b * t for b, t in shapes)


@pytest.mark.parametrize("causal, direct_conv", [(False, 0), (True, 0), (True, 4)])
def test_a_layer_computes_its_last_rows_alone(causal, direct_conv):
    layer, batch = AttentionLayer(12, 3, 0.0, causal, direct_conv).double(), batch_like(LENGTHS)
    x = torch.randn(sum(LENGTHS), 12, dtype=torch.float64)
    expected = layer(x, batch, Rectangles.of(batch, 3))[batch.last]
    torch.testing.assert_close(layer.last_rows(x, batch), expected)
