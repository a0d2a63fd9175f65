"""Padding: the released code's, which leaks, and the paper's two scans, which do not."""

import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble
from gradients import assert_close, assert_same, gradients

from recblr.models.recblr import RecBLR

V = 20
SEQUENCES = random_sequences([1, 2, 3, 7, 20, 13], V)


def model_of(**arguments):
    torch.manual_seed(1)
    model = RecBLR(V, **{"d_model": 8, "dropout": 0.0, "scan": "reference"} | arguments)
    return scramble(model).double()


def released_layer(layer, x, pad):
    """(T, D) of one sequence, after `pad` rows of zeros before the convolution, as released."""
    part = layer.recurrent
    rows = torch.cat((x.new_zeros(pad, x.shape[1]), x))
    p = part.in_proj(rows)
    taps = part.conv_weight[:, None]
    u = F.silu(F.conv1d(F.pad(p.T, (3, 0)), taps, part.conv_bias, groups=part.channels)).T
    r, i = torch.sigmoid(part.gates(u)).chunk(2, -1)
    a = torch.exp(-F.softplus(part.lambda_) * r)
    b = torch.sqrt(1 - a**2 + 1e-8) * i * u
    h, states = b.new_zeros(part.channels), []
    for t in range(len(rows)):
        h = a[t] * h + b[t]
        states.append(h)
    y = torch.stack(states)[pad:] * F.silu(part.gate_proj(x))
    s = layer.recurrent_norm(part.out_proj(y) + x)
    return layer.pffn_norm(layer.pffn.outer(F.silu(layer.pffn.inner(s))) + s)


def released(model, sequence, pad):
    """(D,): the released representation of one sequence."""
    x = model.norm(model.embedding(torch.tensor(sequence)))
    for layer in model.layers:
        x = released_layer(layer, x, pad)
    return x[-1]


@pytest.mark.parametrize(("max_length", "pad"), [(20, 12), (50, 14), (64, 0)])
def test_released_scores_and_gradients_equal_the_released_computation(max_length, pad):
    model = model_of(released=True, max_length=max_length)
    ours = model.represent(batch_of(SEQUENCES))
    theirs = torch.stack([released(model, sequence, pad) for sequence in SEQUENCES])
    assert_same(ours @ model.item_matrix().T, theirs @ model.item_matrix().T, model)


def test_the_leak_shows_and_grows_with_the_padding():
    clean, *leaking = (
        model_of(**kind).represent(batch_of(SEQUENCES)).detach()
        for kind in (
            {},
            {"released": True, "max_length": 64},
            {"released": True, "max_length": 50},
            {"released": True, "max_length": 33},
        )
    )
    moved = [float((other - clean).norm()) for other in leaking]
    assert moved[0] < 1e-5 < 1e-3 < moved[1] < moved[2]


def test_released_steps_equal_the_whole_sequence():
    model = model_of(released=True, max_length=50)
    sequence = SEQUENCES[4]
    state, outputs = model.init_state(1), []
    for item in sequence:
        output, state = model.step(torch.tensor([item]), state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), model.encode(batch_of([sequence])))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"released": True, "max_length": 50}, "released=true"),
        ({"conv1d": False}, "conv1d=false"),
        ({"lambda_init": "random"}, "lambda_init=random"),
        ({"expansion": 3}, "expansion=3"),
        ({"conv_width": 2}, "conv_width=2"),
    ],
)
def test_without_a_recurrence_nothing_of_it_can_be_chosen(changes, named):
    with pytest.raises(ValueError, match=rf"^model.recurrence=false: model.{named} is a setting"):
        RecBLR(V, direct_conv=2, recurrence=False, **changes)
    with pytest.raises(ValueError, match=r"^model.recurrence=false: nothing mixes items"):
        RecBLR(V, recurrence=False)


def test_released_needs_the_length_that_it_pads_to():
    with pytest.raises(ValueError, match=r"model.released=true needs max_length"):
        RecBLR(V, released=True)


@pytest.mark.parametrize("scan", ["parallel_sp", "parallel_ep"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"released": True}, {"direct_conv": 3}, {"direct_conv": 16, "recurrence": False}],
)
def test_padded_scans_compute_the_function_of_the_packed_one(scan, changes):
    """In the padded scans nothing of a padding step may reach a real one."""
    exact, padded = (model_of(scan=name, max_length=20, **changes) for name in ("reference", scan))
    padded.load_state_dict(exact.state_dict())
    batch = batch_of(SEQUENCES)
    head = torch.randn(len(batch.items), 8, dtype=torch.float64)
    results = []
    for model in (exact, padded):
        encoded, represented = model.encode(batch), model.represent(batch)
        found = gradients((encoded * head).sum(), model)
        results.append({"encode": encoded, "represent": represented, **found})
    assert_close(results[1], results[0], 2e-5)
