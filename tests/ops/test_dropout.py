import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recblr.ops.dropout import HAS_NUMBA, Dropout, dropout

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed (pip install numba)")
DTYPES = (torch.float32, torch.bfloat16)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def masks(seed, shape, p=0.3, dtype=torch.float32):
    """What is kept, for one seed of the kernel."""
    from recblr.ops.dropout import cpu

    return cpu.dropout(torch.ones(shape, dtype=dtype), p, seed) != 0


def sigmas(kept, p=0.3):
    """How far counts kept (..., trials) are from their mean, in standard deviations."""
    n = kept.shape[-1]
    return (kept.sum(-1) - n * (1 - p)).abs() / math.sqrt(n * p * (1 - p))


def correlation(a, b, p=0.3):
    """The sample correlation of two masks, in its standard deviations 1/sqrt(n)."""
    a, b = a.double() - (1 - p), b.double() - (1 - p)
    return (a * b).mean().item() / (p * (1 - p)) * math.sqrt(a.numel())


def chi_square(counts, expected):
    """The statistic less its mean, in its standard deviations, for this many cells."""
    freedom = counts.numel() - 1
    return (((counts - expected) ** 2 / expected).sum().item() - freedom) / math.sqrt(2 * freedom)


@needs_numba
@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_the_keep_rate_is_one_minus_p(p, seed):
    assert sigmas(masks(seed, (1_000_000,), p), p) < 5


@needs_numba
@EACH_DTYPE
def test_the_keep_rate_holds_in_every_row_and_column(dtype):
    kept = masks(3, (2000, 512), dtype=dtype)
    assert sigmas(kept).max() < 5
    assert sigmas(kept.t()).max() < 5


@needs_numba
def test_neighbours_are_independent():
    kept = masks(4, (1 << 20,))
    for lag in [*range(1, 65), 128, 256, 1000, 1 << 14, (1 << 14) + 1, 1 << 17]:
        assert abs(correlation(kept[:-lag], kept[lag:])) < 5, lag


@needs_numba
def test_the_patterns_of_ten_neighbours_are_as_frequent_as_chance_has_them():
    for seed in range(8):
        bits = masks(seed, (1 << 18, 10), p=0.5)
        pattern = (bits * (1 << torch.arange(10))).sum(1)
        assert abs(chi_square(pattern.bincount(minlength=1024).double(), (1 << 18) / 1024)) < 5


@needs_numba
def test_hash_bits_fill_all_thresholds_evenly():
    """With growing p the masks shrink in steps: the hash itself, in 64 bins."""
    kept = torch.stack([masks(9, (1 << 20,), p=k / 64) for k in range(64)])
    assert (kept[:-1] | ~kept[1:]).all()  # nested: dropped at p stays dropped above
    bins = kept.sum(0).bincount(minlength=65)[1:].double()
    assert abs(chi_square(bins, (1 << 20) / 64)) < 5


@needs_numba
@pytest.mark.parametrize("other", [6, 5 + (1 << 31), 5 + (1 << 32), 5 + (1 << 62), 5 ^ 0xFFFF])
def test_two_seeds_are_independent(other):
    a, b = masks(5, (1 << 20,)), masks(other, (1 << 20,))
    for lag in range(64):
        assert abs(correlation(a[: len(a) - lag], b[lag:])) < 5, lag


@needs_numba
def test_one_place_over_many_seeds_is_as_random_as_many_places():
    kept = torch.stack([masks(seed, (64,)) for seed in range(4000)])
    assert sigmas(kept.t()).max() < 5
    assert abs(correlation(kept[:-1], kept[1:])) < 5


@needs_numba
@EACH_DTYPE
def test_what_is_kept_is_scaled_exactly(dtype):
    x = torch.randn(1000, 37).to(dtype)
    y = dropout(x, 0.2)
    expected = (x.float() * torch.tensor(1 / (1 - 0.2), dtype=torch.float32)).to(dtype)
    assert torch.equal(y, torch.where(y != 0, expected, 0))
    assert 0.75 < (y != 0).double().mean() < 0.85


@EACH_DTYPE
def test_the_expectation_is_the_input(dtype):
    x = torch.linspace(1, 2, 64).to(dtype)
    mean = torch.stack([dropout(x, 0.4) for _ in range(4000)]).double().mean(0)
    sigma = x.double() * math.sqrt(0.4 / 0.6 / 4000)
    assert ((mean - x.double()).abs() < 5 * sigma + x.double() * torch.finfo(dtype).eps).all()


@needs_numba
@EACH_DTYPE
def test_the_gradient_has_the_mask_of_the_forward_bit_for_bit(dtype):
    x = torch.randn(300, 129).to(dtype).requires_grad_()
    dy = torch.randn(300, 129).to(dtype)
    y = dropout(x, 0.3)
    (dx,) = torch.autograd.grad(y, x, dy)
    scaled = (dy.float() * torch.tensor(1 / (1 - 0.3), dtype=torch.float32)).to(dtype)
    assert torch.equal(dx, torch.where(y.detach() != 0, scaled, 0))


def test_the_gradient_equals_finite_differences():
    x = torch.randn(6, 5).requires_grad_()
    direction, weight = torch.randn(6, 5), torch.randn(6, 5)

    def loss(x):
        torch.manual_seed(11)  # one mask for all
        return (dropout(x, 0.4).double() * weight).sum()

    (dx,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        slope = (loss(x + direction / 64) - loss(x - direction / 64)) * 32
    torch.testing.assert_close(slope, (dx * direction).sum().double(), rtol=1e-4, atol=1e-4)


def test_it_is_differentiable_twice():
    x = torch.randn(50).requires_grad_()
    y = dropout(x, 0.5)
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(dx.sum(), x)
    assert torch.equal(twice, torch.where(y != 0, 8.0, 0.0))  # 2 scale^2


@EACH_DTYPE
def test_the_mask_is_the_same_on_one_thread_and_on_two(dtype):
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            x = torch.ones(333, 333, dtype=dtype, requires_grad=True)
            y = dropout(x, 0.3)
            results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results):
        assert torch.equal(one, two)


@needs_numba
def test_both_precisions_share_the_mask():
    assert torch.equal(masks(8, (40_000,)), masks(8, (40_000,), dtype=torch.bfloat16))


def test_the_generator_of_torch_fixes_the_mask():
    x = torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    with torch.random.fork_rng():
        assert torch.equal(dropout(x, 0.5), first)
        dropout(x, 0.5)
    assert torch.equal(dropout(x, 0.5), first)


@needs_numba
@EACH_DTYPE
def test_the_mask_of_an_element_does_not_depend_on_how_many_follow(dtype):
    longest = masks(5, (1 << 15,), dtype=dtype)
    for n in (0, 1, 7, (1 << 14) - 1, 1 << 14, (1 << 14) + 1):
        assert torch.equal(masks(5, (n,), dtype=dtype), longest[:n]), n


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 2), ()])
def test_empty_and_scalar_inputs_keep_their_shape(shape):
    x = torch.ones(shape, requires_grad=True)
    y = dropout(x, 0.5)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape


@needs_numba
def test_a_strided_input_is_masked_as_its_contiguous_copy():
    buffer = torch.randn(40, 60)
    for x in (buffer.t(), buffer[:, ::2], buffer[3:, 5:], buffer[:1].expand(9, 60)):
        x = x.detach().requires_grad_()
        torch.manual_seed(2)
        y = dropout(x, 0.3)
        torch.manual_seed(2)
        expected = dropout(x.detach().contiguous(), 0.3)
        assert torch.equal(y, expected)
        (dx,) = torch.autograd.grad(y.sum(), x)  # an expanded gradient
        ones = torch.full_like(dx, 1 / (1 - 0.3))
        assert torch.equal(dx, torch.where(expected != 0, ones, 0))


@needs_numba
def test_bfloat16_rounds_to_even_as_torch_does():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    y = dropout(every, 0.3)
    expected = (every.float() * torch.tensor(1 / (1 - 0.3), dtype=torch.float32)).bfloat16()
    kept = y != 0  # NaN too
    assert kept.double().mean() > 0.65
    nan = expected.isnan()
    assert torch.equal(y[kept & ~nan], expected[kept & ~nan])
    assert y[kept & nan].isnan().all()


@needs_numba
def test_p_is_rounded_to_32_bits():
    assert torch.equal(masks(1, (99_999,), 0.3), masks(1, (99_999,), 0.3 + 2**-36))
    assert masks(1, (99_999,), 2**-40).all()
    assert not masks(1, (99_999,), 1 - 2**-40).any()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_p_outside_0_to_1_is_refused(p):
    for call in (lambda: dropout(torch.ones(3), p), lambda: Dropout(p)):
        with pytest.raises(ValueError, match=r"dropout p=.*: must be in \[0, 1\)"):
            call()


def test_no_dropout_returns_the_input_itself_and_draws_nothing():
    x, state = torch.randn(5), torch.random.get_rng_state()
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.5, training=False) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_module_is_that_of_torch():
    ours, torchs = Dropout(0.2), nn.Dropout(0.2)
    assert repr(ours) == repr(torchs)
    assert ours.state_dict() == torchs.state_dict() == {}
    assert isinstance(copy.deepcopy(ours), nn.Dropout)
    x = torch.ones(1000)
    torch.manual_seed(1)
    expected = dropout(x, 0.2)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)
    assert not torch.equal(ours(x), expected)


def test_other_precisions_use_the_dropout_of_torch():
    x = torch.randn(100, dtype=torch.float64)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), expected)


def test_without_numba_it_is_the_dropout_of_torch(monkeypatch):
    monkeypatch.setattr("recblr.ops.dropout.HAS_NUMBA", False)
    test_other_precisions_use_the_dropout_of_torch()
    x = torch.randn(100)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_it_is_the_dropout_of_torch():
    x = torch.randn(100, device="cuda")
    torch.manual_seed(1)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), expected)
