import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from batches import batch_of, random_sequences, scramble
from gradients import assert_same
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from recblr.models.recblr import RecBLR, initial_lambda
from recblr.training.objectives import CrossEntropy

V = 30
LENGTHS = [5, 1, 2, 3, 4, 17, 1, 64]
GOLDEN = [
    [0.1338618033266835, -1.041178639580433, -0.3225885851201212, 0.5655352634103005],
    [0.1164278713940923, -1.04505841340017, -0.3585527140289168, 0.6080795839477018],
    [0.1613533930419888, -1.033742389851275, -0.2938202252215718, 0.526595337783115],
]
ABLATIONS = {
    path.stem: yaml.safe_load(path.read_text()).get("model", {})
    for path in sorted(Path(__file__).parents[2].glob("conf/ablation/*.yaml"))
}
GOLDEN_LOSS = 1.9368534054157835
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64: other orders of the same sums


def tiny(scan="reference", dtype=torch.float64, **changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 8, "n_layers": 2, "expansion": 2, "dropout": 0.0} | changes
    return scramble(RecBLR(V, scan=scan, **arguments)).to(dtype)


def padded_recurrent(cell, x, ablation):
    """x (B, T, D) -> (B, T, D): GatedRecurrent."""
    channels = cell.channels
    u = x if ablation == "bd_lru_only" else x @ cell.in_proj.weight.T
    if ablation == "no_conv1d":
        u = F.silu(u)
    elif ablation != "bd_lru_only":
        conv_input = F.pad(u.transpose(1, 2), (cell.conv_width - 1, 0))  # (B, C, T)
        weight = cell.conv_weight[:, None]
        u = F.silu(F.conv1d(conv_input, weight, cell.conv_bias, groups=channels))
        u = u.transpose(1, 2)
    gates = torch.sigmoid(u @ cell.gates.weight.T + cell.gates.bias)
    r, i = gates[..., :channels], gates[..., -channels:]
    if ablation == "no_input_gate":
        i = torch.ones_like(r)
    if ablation == "constant_decay":
        r = torch.ones_like(i)
    a = torch.exp(-F.softplus(cell.lambda_) * r)  # eq. 8
    h, states = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + torch.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
        states.append(h)
    y = torch.stack(states, 1)
    if ablation not in ("bd_lru_only", "no_gate_z"):
        y = y * F.silu(x @ cell.gate_proj.weight.T)
    return y if ablation == "bd_lru_only" else y @ cell.out_proj.weight.T


def padded_encode(model, items, ablation="default"):
    """items (B, T), 0 on the right -> (B, T, D): the paper's equations on whole tensors."""
    x = model.norm(model.embedding(items))
    for layer in model.layers:
        y = 0.0 if layer.recurrent is None else padded_recurrent(layer.recurrent, x, ablation)
        if layer.direct_conv is not None:
            taps = layer.direct_conv.weight  # (D, K)
            before = F.pad(x.transpose(1, 2), (taps.shape[1] - 1, 0))  # (B, D, T+K-1)
            y = y + F.conv1d(before, taps[:, None], groups=len(taps)).transpose(1, 2)
        x = layer.recurrent_norm(x + y)
        if ablation != "no_pffn":
            pffn = layer.pffn
            x = layer.pffn_norm(x + pffn.outer(F.silu(pffn.inner(x))))
    return x


@pytest.mark.parametrize(
    "ablation, changes",
    [
        *ABLATIONS.items(),
        *(("default", {"conv_width": width}) for width in (1, 6)),
        *(("default", {"direct_conv": width}) for width in (1, 5)),
        ("default", {"direct_conv": 70, "recurrence": False}),
    ],
)
def test_packed_equals_the_equations_on_a_padded_batch(ablation, changes):
    model, sequences = tiny(**changes), random_sequences(LENGTHS, V)
    batch = batch_of(sequences)
    items = batch.padded("right")
    expected = padded_encode(model, items, ablation)[items > 0]
    assert_same(model.encode(batch), expected, model)


@pytest.mark.parametrize("ablation", sorted(set(ABLATIONS) - {"default"}))
def test_each_ablation_changes_the_model_alone(ablation):
    batch = batch_of(random_sequences(LENGTHS, V))
    torch.manual_seed(3)
    whole = RecBLR(V, scan="reference").eval()
    torch.manual_seed(3)
    reduced = RecBLR(V, scan="reference", **ABLATIONS[ablation]).eval()
    assert not torch.equal(whole.represent(batch), reduced.represent(batch))
    parameters = [sum(p.numel() for p in model.parameters()) for model in (whole, reduced)]
    assert parameters[1] < parameters[0] or ablation == "random_init"


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_ablation_steps_and_takes_every_scan(ablation):
    users, length = 3, 6
    sequences = random_sequences([length] * users, V)
    model = tiny(**ABLATIONS[ablation])
    expected = model.encode(batch_of(sequences))
    state = model.init_state(users)
    for t, items in enumerate(torch.tensor(sequences).T):
        representation, state = model.step(items, state)
        whole = expected.view(users, length, -1)[:, t]
        torch.testing.assert_close(representation, whole, **CLOSE)
    single = {"rtol": 1e-5, "atol": 1e-5}
    for scan in ("serial", "cpu"):
        other = tiny(scan, torch.float32, **ABLATIONS[ablation])
        torch.testing.assert_close(other.encode(batch_of(sequences)), expected.float(), **single)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv_width": 1},
        {"conv_width": 2, "d_model": 7, "n_layers": 1},
        {"expansion": 3},
        {"released": True, "max_length": 50},
        {"direct_conv": 1},
        {"direct_conv": 2, "n_layers": 3},
        {"direct_conv": 5, "conv_width": 1},
    ],
)
def test_a_step_in_place_is_the_step(changes):
    model = tiny("cpu", torch.float32, **changes).eval()
    in_place, random = model.step_in_place(), torch.Generator().manual_seed(0)
    exact = tiny(**changes).eval()
    state, spec = tree_flatten(exact.init_state(5))
    state = [part.contiguous() for part in state]
    tables = [part.float() for part in state]
    out = torch.full((5, model.embedding.weight.shape[1]), torch.nan)
    with torch.no_grad():
        for users in ([4], [0, 3, 2], [4, 0], [1], [4, 1, 2, 3, 0], [4]):
            slots = torch.tensor(users)
            items = torch.randint(1, V + 1, slots.shape, generator=random)
            before = [part[slots] for part in state]
            expected, after = exact.step(items, tree_unflatten(before, spec))
            for part, new in zip(state, tree_leaves(after)):
                part[slots] = new
            in_place(items.numpy(), slots.numpy(), tables, out)
            torch.testing.assert_close(out[slots].double(), expected, rtol=1e-5, atol=1e-6)
            for table, part in zip(tables, state):
                torch.testing.assert_close(table.double(), part, rtol=1e-5, atol=1e-6)


def test_a_step_in_place_is_not_offered_where_it_would_be_wrong():
    offered = {
        name: tiny("cpu", torch.float32, **changes).step_in_place() is not None
        for name, changes in ABLATIONS.items()
    }
    assert {name for name, here in offered.items() if here} == {
        "default",
        "random_init",
        "single_layer",
    }
    alone = tiny("cpu", torch.float32, direct_conv=2, recurrence=False)
    assert alone.step_in_place() is None
    assert tiny("cpu").step_in_place() is None, "float64"
    assert tiny(dtype=torch.float32).step_in_place() is None, "the reference was asked for"


def test_an_empty_sequence_leaves_its_neighbours_as_they_are():
    model, sequences = tiny(), random_sequences([3, 0, 1, 0, 0, 6], V)
    packed = model.encode(batch_of(sequences))
    full = [sequence for sequence in sequences if sequence]
    torch.testing.assert_close(packed, model.encode(batch_of(full)), **CLOSE)


def test_every_item_counts_and_so_does_the_order():
    model = tiny()
    base, swapped, first = [4, 8, 15, 16, 23], [8, 4, 15, 16, 23], [5, 8, 15, 16, 23]
    rows = model.represent(batch_of([base, swapped, first]))
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert (rows[0] - rows[2]).abs().max() > 1e-3


def test_the_cpu_scan_leaves_torchs_threads_as_they_are():
    # In a process of its own: only the first kernel starts numba's threads.
    code = """
import torch
from recblr.ops.bd_lru import bd_lru
torch.set_num_threads(1)
bd_lru(torch.ones(2, 1), torch.ones(2, 2), torch.ones(1), torch.tensor([0, 2]), backend="cpu")
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_convolution_and_the_decays_start_as_the_release_starts_them():
    first, second = (layer.recurrent for layer in RecBLR(2000).layers)
    for parameter in (first.conv_weight, first.conv_bias):  # torch's own: +-1/sqrt(width)
        assert 0.45 < parameter.abs().max() <= 0.5
        assert parameter.abs().mean().item() == pytest.approx(0.25, rel=0.2)
    assert not torch.equal(first.conv_weight, second.conv_weight)
    assert not torch.equal(first.lambda_, second.lambda_)


def test_uniform_start_has_decays_uniform_between_the_papers_ends():
    decay = torch.exp(-F.softplus(initial_lambda(20_000, "uniform").double()))
    assert decay.min() >= 0.9 - 1e-6 and decay.max() <= 0.999 + 1e-6
    quarters = torch.linspace(0.9, 0.999, 5, dtype=torch.float64)
    assert torch.histogram(decay, quarters).hist.min() > 4_700
    assert decay.mean().item() == pytest.approx(0.9495, abs=1e-3)


def test_linspace_start_has_the_releases_lambda():
    lambda_ = initial_lambda(128, "linspace")
    assert lambda_[0].item() == pytest.approx(-2.1972, abs=1e-4)
    assert lambda_[-1].item() == pytest.approx(-6.9068, abs=1e-4)
    assert lambda_.diff().std() < 1e-5
    assert torch.exp(-F.softplus(lambda_)).mean().item() == pytest.approx(0.978, abs=1e-3)


def test_random_start_is_standard_normal():
    lambda_ = initial_lambda(20_000, "random")
    assert lambda_.mean().item() == pytest.approx(0, abs=0.03)
    assert lambda_.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("how", "mean"), [("uniform", 0.9495), ("linspace", 0.978), ("random", 0.5)]
)
def test_lambda_init_reaches_the_layers(how, mean):
    model = RecBLR(V, d_model=256, lambda_init=how)
    for layer in model.layers:
        decay = torch.exp(-F.softplus(layer.recurrent.lambda_.detach()))
        assert decay.mean().item() == pytest.approx(mean, abs=0.02)


def test_outputs_are_the_stored_ones():
    model = RecBLR(6, d_model=4, expansion=2, dropout=0.0, scan="reference").double()
    with torch.no_grad():  # no random numbers: torch may draw others some day
        for number, parameter in enumerate(model.parameters(), 1):
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(torch.sin(0.7 * index + number).view_as(parameter))
    batch = batch_of([[1, 2, 3, 1, 6], [5], [4, 4]], [2, 3, 1])
    got = model.represent(batch)
    expected = torch.tensor(GOLDEN, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    assert CrossEntropy()(model, batch).item() == pytest.approx(GOLDEN_LOSS, rel=1e-12)
    padded = padded_encode(model, batch.padded())
    torch.testing.assert_close(
        padded[range(3), batch.lengths - 1], expected, rtol=1e-12, atol=1e-13
    )
