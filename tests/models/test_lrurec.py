import math

import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble
from gradients import assert_same

from recblr.models.lrurec import LRURec, initial_lambda

V = 30
LENGTHS = [5, 1, 2, 3, 4, 17, 1, 64]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64: other orders of the same sums


def tiny(scan="reference", dtype=torch.float64, **changes):
    """Equal weights on every call, all but lambda and gamma far from their start."""
    torch.manual_seed(1)
    return scramble(LRURec(V, scan=scan, **({"d_model": 8, "dropout": 0.0} | changes))).to(dtype)


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
    assert_same(model.encode(batch), expected, model, without=["output_bias"])


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


def test_with_complex_numbers_counted_once_there_are_as_many_as_released():
    """All real numbers are counted in test_contract.py."""
    with torch.device("meta"):
        model = LRURec(3416)
    complex_ones = ("in_weight", "in_bias", "out_weight", "out_bias")
    counts = (p[0].numel() if name.endswith(complex_ones) else p.numel()
              for name, p in model.named_parameters())  # fmt: skip
    assert sum(counts) == 322_841


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
