import pytest
import torch
from batches import batch_of, random_sequences, scramble
from torch.nn.utils.rnn import PackedSequence

from recblr.models.gru4rec import GRU4Rec, by_time, run_gru

V = 30
LENGTHS = [5, 1, 2, 9, 1, 17, 9]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def tiny(**changes):
    torch.manual_seed(1)
    arguments = {"d_model": 8, "hidden": 12, "dropout": 0.0} | changes
    return scramble(GRU4Rec(V, **arguments)).double()


def padded_gru(gru, x):
    """x (B, T, D) -> h of the last layer (B, T, H), by the equations."""
    for layer in range(gru.num_layers):
        w, u = getattr(gru, f"weight_ih_l{layer}"), getattr(gru, f"weight_hh_l{layer}")
        (w_r, w_z, w_n), (u_r, u_z, u_n) = w.chunk(3), u.chunk(3)
        h, states = x.new_zeros(len(x), gru.hidden_size), []
        for x_t in x.unbind(1):
            r = torch.sigmoid(x_t @ w_r.T + h @ u_r.T)
            z = torch.sigmoid(x_t @ w_z.T + h @ u_z.T)
            n = torch.tanh(x_t @ w_n.T + r * (h @ u_n.T))
            h = (1 - z) * n + z * h
            states.append(h)
        x = torch.stack(states, 1)
    return x


@pytest.mark.parametrize("n_layers", [1, 2])
def test_packed_equals_the_equations_on_a_padded_batch(n_layers):
    model, batch = tiny(n_layers=n_layers), batch_of(random_sequences(LENGTHS, V))
    items = batch.padded("right")
    h = padded_gru(model.gru, model.embedding.weight[items])
    expected = (h @ model.dense.weight.T + model.dense.bias)[items > 0]
    got = model.encode(batch)
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(model.represent(batch), expected[batch.last], **CLOSE)

    weights, parameters = torch.randn_like(got), list(model.parameters())
    expected = torch.autograd.grad((expected * weights).sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad((got * weights).sum(), parameters), expected):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_rows_by_time_have_the_longer_sequences_first():
    batch = batch_of([[1, 2], [3, 4, 5], [6]])
    items, rows_per_time, place = by_time(batch)
    assert items.tolist() == [3, 1, 6, 4, 2, 5]
    assert rows_per_time.tolist() == [3, 2, 1]
    assert torch.equal(items[place], batch.items)


def test_the_unit_is_torchs_unit():
    gru, batch = tiny(n_layers=2).gru, batch_of(random_sequences(LENGTHS, V))
    _, rows_per_time, _ = by_time(batch)
    x = torch.randn(len(batch.items), 8, dtype=torch.float64, requires_grad=True)
    got, expected = run_gru(gru, x, rows_per_time), gru(PackedSequence(x, rows_per_time))[0].data
    torch.testing.assert_close(got, expected, **CLOSE)
    weights, inputs = torch.randn_like(got), [x, *gru.parameters()]
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for ours, other in zip(torch.autograd.grad((got * weights).sum(), inputs), theirs):
        torch.testing.assert_close(ours, other, **CLOSE)


@pytest.mark.parametrize(
    ("n_items", "hidden", "expected"),
    [(3416, 128, 300_672), (12101, 128, 856_512), (3416, 64, 247_424), (12101, 64, 803_264)],
)
def test_parameters_are_as_many_as_in_the_usual_implementation(n_items, hidden, expected):
    with torch.device("meta"):
        model = GRU4Rec(n_items, hidden=hidden)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_weights_start_as_in_the_usual_implementation():
    model = GRU4Rec(2000)
    assert model.embedding.weight.std().item() == pytest.approx((2 / 2065) ** 0.5, rel=0.02)
    assert model.embedding.weight[0].abs().max() > 0
    for name, fan_in in (("weight_ih_l0", 64), ("weight_hh_l0", 128)):
        bound = (6 / (3 * 128 + fan_in)) ** 0.5
        assert 0.99 * bound < getattr(model.gru, name).abs().max() <= bound, name
    for parameter in model.dense.parameters():  # torch's own start: +-1/sqrt(H)
        assert 0.9 * 128**-0.5 < parameter.abs().max() <= 128**-0.5


def test_dropout_falls_on_the_embeddings_in_training_only():
    model, batch = tiny(dropout=0.5), batch_of(random_sequences(LENGTHS, V))
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    torch.testing.assert_close(model.encode(batch), tiny().encode(batch), **CLOSE)


def test_the_unit_stays_in_float32_under_autocast():
    model, batch = tiny().float(), batch_of(random_sequences(LENGTHS, V))
    states = []
    model.dense.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    exact = model.encode(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(batch)
    half.float().sum().backward()
    assert torch.equal(states[0], states[1])
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("d_model", 0), ("hidden", 0), ("n_layers", 0), ("dropout", 1.0), ("dropout", -0.1)],
)
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        GRU4Rec(V, **{argument: value})
