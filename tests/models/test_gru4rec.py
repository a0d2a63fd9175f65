import pytest
import torch
from batches import batch_of, random_sequences, scramble
from gradients import assert_same
from torch.nn.utils.rnn import PackedSequence

from recblr.models.gru4rec import GRU4Rec, by_time, run_gru

V = 30
LENGTHS = [5, 1, 2, 9, 1, 17, 9]


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
    assert_same(model.encode(batch), expected, model)


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
    assert_same(got, expected, {"x": x, **dict(gru.named_parameters())})


def test_weights_start_as_in_the_usual_implementation():
    model = GRU4Rec(2000)
    assert model.embedding.weight.std().item() == pytest.approx((2 / 2065) ** 0.5, rel=0.02)
    assert model.embedding.weight[0].abs().max() > 0
    for name, fan_in in (("weight_ih_l0", 64), ("weight_hh_l0", 128)):
        bound = (6 / (3 * 128 + fan_in)) ** 0.5
        assert 0.99 * bound < getattr(model.gru, name).abs().max() <= bound, name
    for parameter in model.dense.parameters():  # torch's own start: +-1/sqrt(H)
        assert 0.9 * 128**-0.5 < parameter.abs().max() <= 128**-0.5


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
