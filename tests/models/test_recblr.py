import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from batches import batch_of, random_sequences, scramble
from hypothesis import given
from hypothesis import strategies as st
from tolerances import allowed_error, relative_error

from recblr.models.base import SequentialModel
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


def gradients(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), grads))


def padded_encode(model, items, ablation="default"):
    """items (B, T), 0 on the right -> (B, T, D): the paper's equations on whole tensors."""
    x = model.norm(model.embedding(items))
    for layer in model.layers:
        cell, channels = layer.recurrent, layer.recurrent.channels
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
        for t in range(items.shape[1]):
            h = a[:, t] * h + torch.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
            states.append(h)
        y = torch.stack(states, 1)
        if ablation not in ("bd_lru_only", "no_gate_z"):
            y = y * F.silu(x @ cell.gate_proj.weight.T)
        if ablation != "bd_lru_only":
            y = y @ cell.out_proj.weight.T
        x = layer.recurrent_norm(x + y)
        if ablation != "no_pffn":
            pffn = layer.pffn
            x = layer.pffn_norm(x + pffn.outer(F.silu(pffn.inner(x))))
    return x


def test_the_model_follows_the_protocol():
    model = tiny()
    assert isinstance(model, SequentialModel)
    assert model.causal
    assert not hasattr(model, "item_bias")


@given(lengths=st.lists(st.sampled_from((1, 2, 3, 4, 5, 9)), min_size=1, max_size=6))
def test_packed_gives_what_each_sequence_gives_alone(lengths):
    model, sequences = tiny(), random_sequences(lengths, V)
    together, parts = model.encode(batch_of(sequences)), []
    for sequence in sequences:
        alone = batch_of([sequence])
        parts.append(model.encode(alone))
        torch.testing.assert_close(model.represent(alone)[0], parts[-1][-1], **CLOSE)
    torch.testing.assert_close(together, torch.cat(parts), **CLOSE)


def test_packed_has_the_summed_gradients_of_its_sequences_alone():
    model, sequences = tiny(), random_sequences(LENGTHS, V)
    weights = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    together = gradients((model.encode(batch_of(sequences)) * weights).sum(), model)
    alone = sum(
        (model.encode(batch_of([sequence])) * part).sum()
        for sequence, part in zip(sequences, weights.split(LENGTHS))
    )
    for name, expected in gradients(alone, model).items():
        assert expected.abs().max() > 1e-6, name
        torch.testing.assert_close(together[name], expected, **CLOSE, msg=name)


@pytest.mark.parametrize(
    "ablation, changes",
    [*ABLATIONS.items(), ("default", {"conv_width": 1}), ("default", {"conv_width": 6})],
)
def test_packed_equals_the_equations_on_a_padded_batch(ablation, changes):
    model, sequences = tiny(**changes), random_sequences(LENGTHS, V)
    batch = batch_of(sequences)
    items = batch.padded("right")
    expected = padded_encode(model, items, ablation)[items > 0]
    got = model.encode(batch)
    torch.testing.assert_close(got, expected, **CLOSE)

    weights = torch.randn_like(got)
    expected = gradients((expected * weights).sum(), model)
    for name, grad in gradients((got * weights).sum(), model).items():
        torch.testing.assert_close(grad, expected[name], **CLOSE, msg=name)


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


@pytest.mark.parametrize("scan", ["reference", "serial", "cpu"])
def test_represent_is_the_last_row_of_encode(scan):
    dtype = torch.float32 if scan == "cpu" else torch.float64
    model, batch = tiny(scan, dtype), batch_of(random_sequences(LENGTHS, V))
    expected = model.encode(batch)[batch.last]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else CLOSE
    torch.testing.assert_close(model.represent(batch), expected, **tolerance)


@pytest.mark.parametrize("scan", ["reference", "serial", "cpu"])
@pytest.mark.parametrize("conv_width", [1, 2, 4])
def test_step_by_step_gives_what_encode_gives(scan, conv_width):
    dtype = torch.float32 if scan == "cpu" else torch.float64
    model = tiny(scan, dtype, conv_width=conv_width)
    users, length = 5, 9
    sequences = random_sequences([length] * users, V)
    expected = model.encode(batch_of(sequences)).view(users, length, -1)
    state = model.init_state(users)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else CLOSE
    for t, items in enumerate(torch.tensor(sequences).T):
        representation, state = model.step(items, state)
        torch.testing.assert_close(representation, expected[:, t], **tolerance)


def test_a_state_can_be_kept_and_continued_later():
    model = tiny()
    first, second = model.init_state(1), model.init_state(1)
    _, kept = model.step(torch.tensor([3]), first)
    model.step(torch.tensor([9]), kept)  # a branch that must not touch `kept`
    _, other = model.step(torch.tensor([3]), second)
    for items in torch.tensor([[7], [1]]):
        got, kept = model.step(items, kept)
        expected, other = model.step(items, other)
        assert torch.equal(got, expected)


def test_neither_order_nor_mates_of_a_batch_matter():
    model, sequences = tiny(), random_sequences(LENGTHS, V)
    expected = model.represent(batch_of(sequences))
    order = torch.randperm(len(sequences))
    shuffled = model.represent(batch_of([sequences[i] for i in order]))
    torch.testing.assert_close(shuffled, expected[order], **CLOSE)
    others = [sequences[0], *random_sequences([40, 1, 3], V, seed=5), sequences[5]]
    torch.testing.assert_close(
        model.represent(batch_of(others))[[0, -1]], expected[[0, 5]], **CLOSE
    )


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


def loss_and_gradients(scan, dtype, batch):
    model = tiny(scan, dtype, d_model=16)
    loss = CrossEntropy()(model, batch)
    return {"loss": loss.detach()} | gradients(loss, model)


@pytest.mark.parametrize("scan", ["serial", "cpu", "reference"])
def test_every_scan_gives_the_loss_and_gradients_of_the_float64_reference(scan):
    sequences = random_sequences([70, 1, 2, 3, 65, 20], V)
    targets = [item for row in random_sequences([70, 1, 2, 3, 65, 20], V, 1) for item in row]
    batch = batch_of(sequences, targets)
    exact = loss_and_gradients("reference", torch.float64, batch)
    plain = loss_and_gradients("reference", torch.float32, batch)
    got = loss_and_gradients(scan, torch.float32, batch)
    assert got.keys() == exact.keys()
    for name in exact:
        allowed = allowed_error("bd_lru", plain[name], exact[name])
        assert allowed < 1e-3, name
        assert relative_error(got[name], exact[name]) <= allowed, name


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


def test_serial_equals_reference_in_float64():
    batch = batch_of(random_sequences(LENGTHS, V), [1] * len(LENGTHS))
    exact = loss_and_gradients("reference", torch.float64, batch)
    for name, got in loss_and_gradients("serial", torch.float64, batch).items():
        torch.testing.assert_close(got, exact[name], **CLOSE, msg=name)


@pytest.mark.parametrize(("n_items", "expected"), [(3416, 402_240), (12101, 958_080)])
def test_parameters_are_as_many_as_the_released_model_has(n_items, expected):
    model = RecBLR(n_items)
    assert sum(p.numel() for p in model.parameters()) == expected
    for layer in model.layers:
        assert sum(p.numel() for p in layer.parameters()) == 91_712


def test_weights_start_as_the_release_starts_them():
    model = RecBLR(2000)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.embedding.weight[0].abs().max() > 0  # the padding row is a row like others
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj.weight", "gates.weight", "inner.weight", "outer.weight")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        if name.endswith(("gates.bias", "inner.bias", "outer.bias", "norm.bias")):
            assert not parameter.any(), name
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        if "conv_" in name:  # torch's own start: uniform on +-1/sqrt(width)
            assert 0.45 < parameter.abs().max() <= 0.5, name
            assert parameter.abs().mean().item() == pytest.approx(0.25, rel=0.2), name
    first, second = (layer.recurrent for layer in model.layers)
    assert not torch.equal(first.gates.weight, second.gates.weight)
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


def test_the_item_matrix_is_the_embedding_by_item_id():
    model = tiny()
    assert model.item_matrix() is model.embedding.weight
    assert model.item_matrix().shape == (V + 1, 8)
    with torch.no_grad():
        model.embedding.weight[7] += 1
    before = tiny().represent(batch_of([[7], [8]]))
    after = model.represent(batch_of([[7], [8]]))
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("d_model", 0), ("n_layers", 0), ("expansion", 0), ("conv_width", 0),
        ("dropout", 1.0), ("dropout", -0.1), ("lambda_init", "normal"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        RecBLR(V, **{argument: value})


def test_an_unknown_scan_is_named():
    with pytest.raises(ValueError, match="scan='fast': choose from"):
        tiny(scan="fast").encode(batch_of([[1]]))


def test_dropout_acts_in_training_only():
    model, batch = tiny(dropout=0.5), batch_of(random_sequences(LENGTHS, V))
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    assert torch.equal(model.encode(batch), model.encode(batch))
    torch.testing.assert_close(model.encode(batch), tiny().encode(batch), **CLOSE)


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
