import pytest
import torch
from batches import batch_of, random_sequences, scramble
from gradients import assert_same

from recblr.models.narm import NARM

V = 30
LENGTHS = [5, 1, 2, 3, 9, 1, 17, 8]


def tiny(**changes):
    torch.manual_seed(1)
    arguments = {"d_model": 8, "hidden": 12, "dropout": 0.0, "head_dropout": 0.0} | changes
    return scramble(NARM(V, **arguments)).double()


def one_prefix(model, prefix):
    """(D,): the equations for one prefix."""
    h, _ = model.gru(model.embedding.weight[prefix])  # (T, H)
    local = torch.zeros_like(h[-1])
    for h_j in h:
        alpha = model.v.weight[0] @ torch.sigmoid(model.a1.weight @ h_j + model.a2.weight @ h[-1])
        local = local + alpha * h_j
    return model.out_proj.weight @ torch.cat((local, h[-1]))


@pytest.mark.parametrize("what", ["encode", "represent"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_all_positions_at_once_equal_the_equations_prefix_by_prefix(what, n_layers):
    model, sequences = tiny(n_layers=n_layers), random_sequences(LENGTHS, V)
    batch = batch_of(sequences)
    prefixes = [sequence[:stop] for sequence in sequences for stop in range(1, len(sequence) + 1)]
    expected = torch.stack([one_prefix(model, prefix) for prefix in prefixes])
    expected = expected[batch.last] if what == "represent" else expected
    assert_same(getattr(model, what)(batch), expected, model)


def test_the_local_part_is_a_sum_that_grows_with_the_history():
    model = tiny()
    with torch.no_grad():
        model.a1.weight.zero_()
        model.a2.weight.zero_()  # each weight is v . 1/2
        model.out_proj.weight[:, 12:] = 0
        model.gru.weight_ih_l0[12:24] = -1e3 * model.embedding.weight[4].sign().repeat(12, 1)
        model.gru.weight_hh_l0[12:] = 0  # z = 0 and no memory: h_t = n(x_t)
    short, long = model.represent(batch_of([[4] * 3, [4] * 12]))
    assert short.abs().max() > 1e-3
    torch.testing.assert_close(long, 4 * short)


def test_saturated_weights_stay_finite():
    model, batch = tiny().float(), batch_of(random_sequences(LENGTHS, V))
    with torch.no_grad():
        model.a1.weight.mul_(500)
        model.a2.weight.mul_(-500)
    got = model.encode(batch)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(got[batch.last], model.represent(batch))


def test_weights_start_as_in_the_usual_implementation():
    model = NARM(2000)
    assert model.embedding.weight[0].abs().max() > 0
    for name, parameter in model.named_parameters():
        if name.startswith("gru"):  # torch's own start: +-1/sqrt(H)
            assert 0.99 * 128**-0.5 < parameter.abs().max() <= 128**-0.5, name
        else:
            expected = (2 / sum(parameter.shape)) ** 0.5
            relative = 0.2 if name == "v.weight" else 0.03
            assert parameter.std().item() == pytest.approx(expected, rel=relative), name


def test_unit_and_attention_stay_in_float32_under_autocast():
    model, batch = tiny().float(), batch_of(random_sequences(LENGTHS, V))
    exact, seen = model.encode(batch), []
    model.head_dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(batch)
        model.represent(batch)
    half.float().sum().backward()
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[2], seen[1][batch.last])
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
