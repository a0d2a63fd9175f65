import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble
from gradients import assert_same

from recblr.models.caser import Caser

V, U, LONGEST = 30, 9, 7
LENGTHS = [5, 1, 2, 7, 1, 4]


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
    torch.testing.assert_close(model.represent(batch), expected[batch.last])
    assert_same(got, expected, model)


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
    torch.testing.assert_close(far, model.represent(batch_of([near])))
    assert (far - model.represent(batch_of([near[1:]]))).abs().max() > 1e-3


def test_the_regulariser_is_the_usual_sum_of_norms():
    model = tiny(window=3)
    tables = (model.user_embedding, model.embedding, model.vertical, model.fc1, model.fc2)
    expected = sum(layer.weight.square().sum().sqrt() for layer in (*tables, *model.horizontal))
    assert len(model.horizontal) == 3
    assert model.regulariser().item() == pytest.approx(1e-4 * expected.item(), rel=1e-12)


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
