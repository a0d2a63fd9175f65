from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble

from recblr.models.caser import Caser

V, U, LONGEST = 30, 9, 7
LENGTHS = [5, 1, 2, 7, 1, 4]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def tiny(**changes):
    torch.manual_seed(1)
    arguments = {"max_length": LONGEST, "d_model": 8, "n_h": 3, "dropout": 0.0} | changes
    return scramble(Caser(V, U, **arguments)).double()


def predict(model, window, user):
    """(D,): the equations for one window of embeddings (L, D)."""
    parts = [
        (weight[:, None] * window).sum(0) + bias
        for weight, bias in zip(model.vertical.weight, model.vertical.bias)
    ]
    for height, layer in enumerate(model.horizontal, 1):
        kernels = layer.weight.view(-1, height, window.shape[1])
        for kernel, bias in zip(kernels, layer.bias):
            scores = [
                (kernel * window[i : i + height]).sum() + bias
                for i in range(len(window) - height + 1)
            ]
            parts.append(torch.stack(scores).relu().max()[None])
    z = F.relu(model.fc1.weight @ torch.cat(parts) + model.fc1.bias)
    both = torch.cat((z, model.user_embedding.weight[user + 1]))
    return F.relu(model.fc2.weight @ both + model.fc2.bias)


def prefixes(sequences):
    return [(user, s[: t + 1]) for user, s in enumerate(sequences) for t in range(len(s))]


@pytest.mark.parametrize("window", [1, 3, 5, 10])
@pytest.mark.parametrize("usual", [False, True])
def test_all_positions_equal_the_equations_window_by_window(window, usual):
    model, sequences = tiny(window=window, usual=usual), random_sequences(LENGTHS, V)
    batch, expected = batch_of(sequences), []
    for user, prefix in prefixes(sequences):
        known = model.embedding.weight[prefix[-window:]]
        missing = window - len(known)
        if usual:
            row = model.embedding.weight[0].detach()  # lookups do not train it
            x = torch.cat((known, row.expand(missing, -1)))
        else:
            x = F.pad(known, (0, 0, missing, 0))
        expected.append(predict(model, x, user))
    expected, got = torch.stack(expected), model.encode(batch)
    assert (got > 0).double().mean() > 0.2  # few units are shut
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(model.represent(batch), expected[batch.last], **CLOSE)

    weights, parameters = torch.randn_like(got), list(model.parameters())
    expected = torch.autograd.grad((expected * weights).sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad((got * weights).sum(), parameters), expected):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_only_usual_sees_the_padding_row_and_only_in_short_histories():
    batch = batch_of(random_sequences([2, LONGEST], V))
    for usual, moves in ((False, [False, False]), (True, [True, False])):
        model = tiny(usual=usual)
        before = model.represent(batch)
        with torch.no_grad():
            model.embedding.weight[0] += 1
        changed = (model.represent(batch) != before).any(1)
        assert changed.tolist() == moves


def test_a_window_ends_at_the_newest_item_or_starts_at_the_oldest_if_usual():
    ramp = torch.arange(1.0, 8.0, dtype=torch.float64)
    for usual, slots in ((False, [5, 6, 7]), (True, [1, 2, 3])):
        model = tiny(window=LONGEST, usual=usual)
        with torch.no_grad():
            model.embedding.weight.copy_(torch.arange(V + 1)[:, None].expand(-1, 8))
            model.vertical.weight.copy_(ramp.expand(4, -1))
            model.vertical.bias.zero_()
        batch = batch_of([[2, 3, 4]])
        seen = []
        model.fc1.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.represent(batch)
        assert seen[0][0, 0].item() == sum(slot * item for slot, item in zip(slots, [2, 3, 4]))


def test_items_before_the_window_do_not_count():
    model = tiny()
    far, near = model.represent(batch_of([[1, 2, 3, 4, 5, 6]])), [2, 3, 4, 5, 6]
    torch.testing.assert_close(far, model.represent(batch_of([near])), **CLOSE)
    assert (far - model.represent(batch_of([near[1:]]))).abs().max() > 1e-3


def test_the_user_counts_and_an_unknown_one_has_the_row_0():
    model, batch = tiny(), batch_of([[4, 5]] * 3)
    first, second, unknown = model.represent(replace(batch, user_ids=torch.tensor([0, 1, -1])))
    assert (first - second).abs().max() > 1e-3
    with torch.no_grad():
        model.user_embedding.weight[0] = model.user_embedding.weight[2]
    assert torch.equal(model.represent(replace(batch, user_ids=torch.tensor([-1] * 3)))[0], second)
    assert not torch.equal(unknown, second)


def test_the_regulariser_is_the_usual_sum_of_norms():
    model = tiny(window=3)
    tables = (model.user_embedding, model.embedding, model.vertical, model.fc1, model.fc2)
    expected = sum(layer.weight.square().sum().sqrt() for layer in (*tables, *model.horizontal))
    assert len(model.horizontal) == 3
    assert model.regulariser().item() == pytest.approx(1e-4 * expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"usual": True}, (11_026_020, 2_909_532)),
        ({"usual": True, "window": 10}, (663_420, 2_263_932)),
        ({"window": 10, "n_h": 8}, (663_420, 2_263_932)),
        ({}, (650_600, 2_251_112)),
    ],
)
def test_parameters_are_as_many_as_in_the_usual_implementation(arguments, expected):
    sizes = ((3416, 6040, 200), (12101, 22363, 50))
    for (n_items, n_users, max_length), count in zip(sizes, expected):
        with torch.device("meta"):
            model = Caser(n_items, n_users, max_length, **arguments)
        assert sum(p.numel() for p in model.parameters()) == count


def test_weights_start_as_in_the_usual_implementation():
    model = Caser(2000, 1000, 50)
    for table in (model.embedding.weight, model.user_embedding.weight[1:]):
        assert table.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert model.embedding.weight[0].abs().max() > 0
    assert not model.user_embedding.weight[0].any()
    for layer in (model.fc1, model.fc2):
        expected = (2 / sum(layer.weight.shape)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert not layer.bias.any()
    for layer in (model.vertical, *model.horizontal):  # a convolution's own start
        bound = layer.in_features**-0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound


def test_dropout_acts_in_training_only():
    model, batch = tiny(dropout=0.5), batch_of(random_sequences(LENGTHS, V))
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    torch.testing.assert_close(model.encode(batch), tiny().encode(batch), **CLOSE)


def test_it_runs_under_autocast():
    model, batch = tiny().float(), batch_of(random_sequences(LENGTHS, V))
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(batch)
    half.float().sum().backward()
    torch.testing.assert_close(half.float(), model.encode(batch), rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("d_model", 0), ("window", 0), ("n_h", 0), ("n_v", 0), ("dropout", 1.0)],
)
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        tiny(**{argument: value})
