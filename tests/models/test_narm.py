import pytest
import torch
from batches import batch_of, random_sequences, scramble

from recblr.models.narm import NARM

V = 30
LENGTHS = [5, 1, 2, 3, 9, 1, 17, 8]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


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


@pytest.mark.parametrize("n_layers", [1, 2])
def test_all_positions_at_once_equal_the_equations_prefix_by_prefix(n_layers):
    model, sequences = tiny(n_layers=n_layers), random_sequences(LENGTHS, V)
    batch = batch_of(sequences)
    expected = torch.stack(
        [
            one_prefix(model, sequence[: t + 1])
            for sequence in sequences
            for t in range(len(sequence))
        ]
    )
    got = model.encode(batch)
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(model.represent(batch), expected[batch.last], **CLOSE)

    weights, parameters = torch.randn_like(got), list(model.parameters())
    expected = torch.autograd.grad((expected * weights).sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad((got * weights).sum(), parameters), expected):
        torch.testing.assert_close(ours, theirs, **CLOSE)


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
    torch.testing.assert_close(long, 4 * short, **CLOSE)


def test_saturated_weights_stay_finite():
    model, batch = tiny().float(), batch_of(random_sequences(LENGTHS, V))
    with torch.no_grad():
        model.a1.weight.mul_(500)
        model.a2.weight.mul_(-500)
    got = model.encode(batch)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(got[batch.last], model.represent(batch))


@pytest.mark.parametrize(
    ("n_items", "hidden", "expected"),
    [(3416, 128, 341_696), (12101, 128, 897_536), (3416, 64, 259_712), (12101, 64, 815_552)],
)
def test_parameters_are_as_many_as_in_the_usual_implementation(n_items, hidden, expected):
    with torch.device("meta"):
        model = NARM(n_items, hidden=hidden)
    assert sum(p.numel() for p in model.parameters()) == expected


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


@pytest.mark.parametrize("which", ["dropout", "head_dropout"])
def test_each_dropout_acts_in_training_only(which):
    model, batch = tiny(**{which: 0.5}), batch_of(random_sequences(LENGTHS, V))
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    torch.testing.assert_close(model.encode(batch), tiny().encode(batch), **CLOSE)


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


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("d_model", 0), ("hidden", 0), ("n_layers", 0), ("dropout", 1.0), ("head_dropout", -0.1),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        NARM(V, **{argument: value})
