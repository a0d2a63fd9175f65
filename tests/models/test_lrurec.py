import math

import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble
from tolerances import allowed_error, relative_error

from recblr.models.base import block_scorer
from recblr.models.lrurec import LRURec, initial_lambda
from recblr.training.objectives import CrossEntropy

V = 30
LENGTHS = [5, 1, 2, 3, 4, 17, 1, 64]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64: other orders of the same sums


def tiny(scan="reference", dtype=torch.float64, **changes):
    """Equal weights on every call, all but lambda and gamma far from their start."""
    torch.manual_seed(1)
    return scramble(LRURec(V, scan=scan, **({"d_model": 8, "dropout": 0.0} | changes))).to(dtype)


def gradients(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), grads))


def padded_encode(model, items):
    """items (B, T), 0 on the left -> (B, T, D): the equations on whole complex tensors."""
    x, real = model.norm(model.embedding(items)), (items > 0)[..., None]
    for layer in model.layers:
        cell = layer.recurrent
        weights = (cell.in_weight, cell.in_bias, cell.out_weight, cell.out_bias)
        b, beta, c, c_bias = (torch.complex(*weight) for weight in weights)
        nu, theta, gamma = cell.lambda_
        decay = torch.exp(-torch.exp(nu) + 1j * torch.exp(theta))
        u = torch.exp(gamma) * (x.to(b.dtype) @ b.T + beta)  # (B, T, 2D)
        h, states = torch.zeros_like(u[:, 0]), []
        for t in range(items.shape[1]):
            h = torch.where(real[:, t], decay * h + u[:, t], 0)
            states.append(h)
        y = (torch.stack(states, 1) @ c.T + c_bias).real
        s = layer.recurrent_norm(x + y)
        pffn = layer.pffn
        x = layer.pffn_norm(s + pffn.outer(F.gelu(pffn.inner(s))))
    return x


@pytest.mark.parametrize("scan", ["reference", "auto"])
@pytest.mark.parametrize("changes", [{}, {"d_model": 5, "n_layers": 3}])
def test_packed_equals_the_equations_on_a_left_padded_batch(scan, changes):
    model, batch = tiny(scan, **changes), batch_of(random_sequences(LENGTHS, V))
    items = batch.padded("left")
    expected = padded_encode(model, items)[items > 0]
    got = model.encode(batch)
    torch.testing.assert_close(got, expected, **CLOSE)

    weights = torch.randn_like(got)
    linear = (got * weights).sum() + model.item_bias()[3]
    expected = gradients((expected * weights).sum() + model.output_bias[3], model)
    for name, grad in gradients(linear, model).items():
        assert expected[name].abs().max() > 1e-6, name
        torch.testing.assert_close(grad, expected[name], **CLOSE, msg=name)


def loss_and_gradients(scan, dtype, batch):
    model = tiny(scan, dtype, d_model=16)
    loss = CrossEntropy()(model, batch)
    return {"loss": loss.detach()} | gradients(loss, model)


@pytest.mark.parametrize("scan", ["cpu", "doubling"])
@pytest.mark.parametrize("mode", ["all positions", "prefix"])
def test_every_scan_gives_the_loss_and_gradients_of_the_float64_reference(scan, mode):
    lengths = [70, 1, 2, 3, 65, 20]
    per_position = [item for row in random_sequences(lengths, V, 1) for item in row]
    targets = per_position if mode == "all positions" else per_position[: len(lengths)]
    batch = batch_of(random_sequences(lengths, V), targets)
    exact = loss_and_gradients("reference", torch.float64, batch)
    plain = loss_and_gradients("reference", torch.float32, batch)
    got = loss_and_gradients(scan, torch.float32, batch)
    for name in exact:
        allowed = allowed_error("lru", plain[name], exact[name])
        assert allowed < 1e-3, name
        assert relative_error(got[name], exact[name]) <= allowed, name


@pytest.mark.parametrize(("scan", "dtype"), [("cpu", torch.float32), ("auto", torch.float64)])
def test_step_by_step_gives_what_encode_gives(scan, dtype):
    """The plain loop's turn is in test_contract.py."""
    model, sequences = tiny(scan, dtype), random_sequences([9] * 5, V)
    expected = model.encode(batch_of(sequences)).view(5, 9, -1)
    state = model.init_state(5)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else CLOSE
    for t, items in enumerate(torch.tensor(sequences).T):
        representation, state = model.step(items, state)
        torch.testing.assert_close(representation, expected[:, t], **tolerance)


@pytest.mark.parametrize(("scan", "dtype"), [("cpu", torch.float32), ("auto", torch.float64)])
def test_a_state_can_be_kept_and_continued_later(scan, dtype):
    model = tiny(scan, dtype)
    _, kept = model.step(torch.tensor([3]), model.init_state(1))
    expected, _ = model.step(torch.tensor([7]), kept)
    model.step(torch.tensor([9]), kept)
    again, _ = model.step(torch.tensor([7]), kept)
    assert torch.equal(again, expected)


def test_the_imaginary_part_of_c_changes_nothing():
    model, batch = tiny(), batch_of(random_sequences(LENGTHS, V))
    before = model.encode(batch)
    for layer in model.layers:
        real, imaginary = torch.autograd.grad(before.sum(), layer.recurrent.out_bias,
                                              retain_graph=True)[0]  # fmt: skip
        assert real.any() and not imaginary.any()
        with torch.no_grad():
            layer.recurrent.out_bias[1] += 1
    assert torch.equal(model.encode(batch), before)


def test_scores_are_against_the_embedding_and_have_a_bias_per_item():
    model, batch = tiny(), batch_of(random_sequences(LENGTHS, V))
    scores = block_scorer(model, batch)(4, 9)
    expected = model.represent(batch) @ model.embedding.weight[4:9].T + model.output_bias[4:9]
    torch.testing.assert_close(scores, expected, **CLOSE)


@pytest.mark.parametrize(
    ("n_items", "once", "scalars"), [(3416, 322_841, 355_993), (12101, 887_366, 920_518)]
)
def test_parameters_are_as_many_as_the_released_model_has(n_items, once, scalars):
    """Complex entries counted once, and all real numbers."""
    model = LRURec(n_items)
    assert sum(p.numel() for p in model.parameters()) == scalars
    halves = ("in_weight", "in_bias", "out_weight", "out_bias")
    imaginary = sum(p[1].numel() for name, p in model.named_parameters() if name.endswith(halves))
    assert scalars - imaginary == once


def test_weights_start_as_the_release_starts_them():
    model = LRURec(2000)
    below_two_sigma = 0.02 * math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / 0.9545)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("norm.bias"):
            assert not parameter.any(), name
        elif not name.endswith("lambda_"):  # biases, the bias of items and the padding row too
            assert 0 < parameter.abs().max() <= 0.04, name
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(below_two_sigma, rel=0.05), name
                assert parameter.abs().max() > 0.039, name
    assert model.embedding.weight[0].all()
    first, second = (layer.recurrent for layer in model.layers)
    assert not torch.equal(first.in_weight, second.in_weight)
    assert not torch.equal(first.lambda_, second.lambda_)
    assert not torch.equal(*first.in_weight)


def test_lambda_starts_uniform_on_a_ring_and_gamma_as_its_complement():
    nu, theta, gamma = initial_lambda(20_000).double()
    square = torch.exp(-2 * nu.exp())
    assert square.min() >= 0.8**2 - 1e-6 and square.max() <= 0.99**2 + 1e-6
    for value, low, high in ((square, 0.8**2, 0.99**2), (theta.exp(), 0, 2 * math.pi)):
        fifths = torch.linspace(low - 1e-6, high + 1e-6, 6, dtype=torch.float64)
        assert torch.histogram(value, fifths).hist.min() > 3_800
    assert abs(torch.corrcoef(torch.stack((square, theta.exp())))[0, 1]) < 0.03
    torch.testing.assert_close(gamma.exp() ** 2, 1 - square, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("d_model", 0), ("n_layers", 0), ("dropout", 1.0), ("dropout", -0.1), ("scan", "fast")],
)
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        LRURec(V, **{argument: value})
