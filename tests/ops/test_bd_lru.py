import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from bd_lru_cases import NAMES, make
from hypothesis import example, given
from hypothesis import strategies as st
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.backends import resolve_backend
from recblr.ops.bd_lru import bd_lru

FAST = ("serial", "cpu")  # the Triton backends have test files of their own
BACKENDS = ("reference", *FAST)
LENGTHS = st.lists(st.sampled_from((0, 1, 2, 3, 7, 15, 16, 17, 33, 63, 64, 65)), max_size=6)


def evaluate(inputs, dtype, backend="reference", eps=0.0, function=bd_lru, heads=(1.0, 1.0)):
    """Outputs and gradients by name, of a random functional of y and the final state."""
    leaves = {
        k: inputs[k].to(dtype).detach().requires_grad_() for k in NAMES if inputs[k] is not None
    }
    y, final = function(**(inputs | leaves), eps=eps, backend=backend)
    random = torch.Generator().manual_seed(7)
    loss = sum(
        weight * (out * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
        for weight, out in zip(heads, (y, final))
    )
    names, tensors = zip(*leaves.items())
    gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
    return {"y": y.detach(), "final": final.detach()} | {
        f"d{k}": d for k, d in zip(names, gradients)
    }


def assert_backends_agree(inputs, eps=0.0, backends=FAST, case="", **kwargs):
    exact = evaluate(inputs, torch.float64, eps=eps, **kwargs)
    plain = evaluate(inputs, torch.float32, eps=eps, **kwargs)
    for backend in backends:
        got = evaluate(inputs, torch.float32, backend, eps, **kwargs)
        assert_close("bd_lru", got, plain, exact, f"{backend} {case}")


def assert_same(backend, got, expected):
    """Bit for bit on the CPU kernel; torch's own sigmoid rounds by where an element lies."""
    allowed = 0 if backend == "cpu" else 2e-6
    torch.testing.assert_close(got, expected, atol=allowed, rtol=allowed)


def by_hand(u, gates, lambda_, cu_seqlens, h0, z, eps):
    """The equations, one number at a time."""
    y, final = np.empty(u.shape), np.array(h0)
    for channel in range(u.shape[1]):
        c = math.log1p(math.exp(lambda_[channel]))
        for sequence in range(len(cu_seqlens) - 1):
            h = h0[sequence, channel]
            for t in range(cu_seqlens[sequence], cu_seqlens[sequence + 1]):
                r = 1 / (1 + math.exp(-gates[t, channel]))
                i = 1 / (1 + math.exp(-gates[t, u.shape[1] + channel]))
                a = math.exp(-c * r)
                h = a * h + math.sqrt(1 - a * a + eps) * i * u[t, channel]
                y[t, channel] = h * z[t, channel] / (1 + math.exp(-z[t, channel]))
            final[sequence, channel] = h
    return y, final


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_reference_is_the_equations_evaluated_by_hand(eps):
    inputs = make([3, 0, 1, 4], 3)
    y, final = bd_lru(**inputs, eps=eps, backend="reference")
    hand_y, hand_final = by_hand(**{k: v.numpy() for k, v in inputs.items()}, eps=eps)
    np.testing.assert_allclose(y, hand_y, rtol=1e-12)
    np.testing.assert_allclose(final, hand_final, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "serial"])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_gradients_equal_finite_differences(backend, eps):
    inputs = make([2, 0, 3], 2)
    leaves = [inputs[k].requires_grad_() for k in NAMES]

    def function(u, gates, lambda_, h0, z):
        return bd_lru(u, gates, lambda_, inputs["cu_seqlens"], h0, z, eps, backend)

    assert torch.autograd.gradcheck(function, leaves)


@given(
    lengths=LENGTHS,
    channels=st.sampled_from((1, 16, 20, 33, 128)),
    shift=st.sampled_from((-100.0, -50.0, -20.0, 0.0, 5.0, 200.0)),
    lambda_at=st.sampled_from((-13.0, -10.0, -3.0, 0.0, 8.0, 100.0)),
    merge=st.booleans(),
    h0=st.booleans(),
    eps=st.sampled_from((0.0, 1e-8)),
    seed=st.integers(0, 99),
)
@example([65], 33, -100.0, -10.0, True, True, 0.0, 1)
@example([65, 1], 128, 200.0, 100.0, True, True, 0.0, 2)
@example([17, 0, 64], 20, 0.0, -13.0, True, True, 0.0, 3)
@example([0, 0], 16, 0.0, 0.0, True, True, 0.0, 4)
@example([], 16, 0.0, 0.0, True, False, 0.0, 5)
def test_backends_equal_the_float64_reference(
    lengths, channels, shift, lambda_at, merge, h0, eps, seed
):
    """Lambda near -13 makes every decay about 1 - 1e-6."""
    case = f"{lengths=} {channels=} {shift=} {lambda_at=} {merge=} {h0=} {eps=} {seed=}"
    inputs = make(lengths, channels, seed, shift, lambda_at, merge, h0)
    assert_backends_agree(inputs, eps, case=case)


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
def test_gradients_come_from_the_output_and_from_the_final_state(heads):
    assert_backends_agree(make([5, 0, 17, 1], 20), heads=heads)


def test_many_tiny_sequences_and_one_long_one():
    assert_backends_agree(make([k % 4 for k in range(300)], 16))
    assert_backends_agree(make([2, 0, 1025, 1], 20))


@given(cut=st.sampled_from((0, 1, 3, 16, 40)), shift=st.sampled_from((-20.0, 0.0, 30.0)))
def test_two_calls_joined_by_the_state_equal_one(cut, shift):
    whole = make([40], 20, shift=shift)
    parts = [whole | {k: whole[k][rows] for k in ("u", "gates", "z")}
             for rows in (slice(None, cut), slice(cut, None))]  # fmt: skip
    for backend in BACKENDS:
        inputs = {k: v.float() if k in NAMES else v for k, v in whole.items()}
        y, final = bd_lru(**inputs, backend=backend)
        state, ys = inputs["h0"], []
        for part in parts:
            part = {k: v.float() if k in NAMES else v for k, v in part.items()}
            part |= {"h0": state, "cu_seqlens": torch.tensor([0, len(part["u"])])}
            part_y, state = bd_lru(**part, backend=backend)
            ys.append(part_y)
        assert_same(backend, torch.cat(ys), y)
        assert_same(backend, state, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_one_by_one_bit_for_bit(backend):
    lengths = [3, 0, 18, 1, 2, 7] * 4
    inputs = {k: v.float() if k in NAMES else v for k, v in make(lengths, 20).items()}
    y, final = bd_lru(**inputs, backend=backend)
    bounds = inputs["cu_seqlens"].tolist()
    for b, (start, stop) in enumerate(pairwise(bounds)):
        one = {k: inputs[k][start:stop] for k in ("u", "gates", "z")}
        one |= {"lambda_": inputs["lambda_"], "h0": inputs["h0"][b : b + 1]}
        one_y, one_final = bd_lru(
            **one, cu_seqlens=torch.tensor([0, stop - start]), backend=backend
        )
        assert_same(backend, one_y, y[start:stop])
        assert_same(backend, one_final[0], final[b])


@pytest.mark.parametrize("backend", BACKENDS)
def test_later_rows_do_not_reach_earlier_outputs(backend):
    inputs = {k: v.float() if k in NAMES else v for k, v in make([9, 40], 20).items()}
    y, _ = bd_lru(**inputs, backend=backend)
    later = {k: inputs[k].clone() for k in ("u", "gates", "z")}
    for tensor in later.values():
        tensor[30:] += 1
    changed, _ = bd_lru(**(inputs | later), backend=backend)
    assert torch.equal(changed[:30], y[:30])
    assert not torch.equal(changed[30:], y[30:])


@pytest.mark.parametrize("backend", FAST)
def test_slices_of_larger_buffers_give_the_same(backend):
    def strided(**arguments):
        return bd_lru(
            **{k: v.repeat_interleave(2, -1)[..., ::2] if k in NAMES else v
               for k, v in arguments.items()}
        )  # fmt: skip

    inputs = make([5, 17, 0], 20)
    exact = evaluate(inputs, torch.float32, backend)
    got = evaluate(inputs, torch.float32, backend, function=strided)
    for name in exact:
        assert_same(backend, got[name], exact[name])


@pytest.mark.parametrize(
    ("lengths", "channels"),
    [([30, 5, 0, 70] * 8, 33), ([300], 130)],  # the second: two threads share its channels
)
def test_gradients_are_the_same_on_one_thread_and_on_two(lengths, channels):
    inputs = make(lengths, channels)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(inputs, torch.float32, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


def test_half_precision_input_runs_in_float32():
    inputs = {k: v.bfloat16() if k in NAMES else v for k, v in make([20, 3], 16).items()}
    wide = {k: v.float() if k in NAMES else v for k, v in inputs.items()}
    y, final = bd_lru(**inputs)
    wide_y, wide_final = bd_lru(**wide, backend="serial")
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    torch.testing.assert_close(y, wide_y.bfloat16(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(final, wide_final)


def start_not_reset(cu_seqlens, h0, **k):
    ends = cu_seqlens[[0, -1]]
    y, final = bd_lru(cu_seqlens=ends, h0=h0[:1], **k)
    return y, final.expand_as(h0)


def gate_shifted_by_one(gates, **k):
    return bd_lru(gates=gates.roll(1, 0), **k)


def h0_gradient_lost(h0, **k):
    return bd_lru(h0=h0.detach() + 0 * h0, **k)


def carry_dropped_at_a_block_edge(cu_seqlens, h0, **k):
    edges = torch.cat((cu_seqlens, torch.tensor([16]))).sort().values
    keep = torch.cat((h0[:1], 0 * h0[:1], h0[1:]))
    y, final = bd_lru(cu_seqlens=edges, h0=keep, **k)
    return y, torch.cat((final[:1], final[2:]))


@pytest.mark.parametrize(
    "fault",
    [start_not_reset, gate_shifted_by_one, h0_gradient_lost, carry_dropped_at_a_block_edge],
)
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([20, 9, 4], 20)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    faulty = evaluate(inputs, torch.float32, function=fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("bd_lru", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(ValueError, match=r"scan=cpu cannot run: it needs float32.*float64"):
        bd_lru(**make([3], 2), backend="cpu")
    with pytest.raises(ValueError, match=r"scan=cpu cannot run: .* on cuda"):
        resolve_backend("cpu", "cuda", torch.float32)
    with pytest.raises(ValueError, match="'quick' is unknown; choose from reference, serial, par"):
        bd_lru(**make([3], 2), backend="quick")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"scan=fused cannot run: it computes in float32"):
        resolve_backend("fused", "cuda", torch.float64)
    for scan in ("fused", "parallel_sp", "parallel_ep"):
        said = (
            rf"scan={scan} cannot run: Triton needs a CUDA device, .* CPU; reference, serial, cpu"
        )
        with pytest.raises(ValueError, match=said):
            resolve_backend(scan, "cpu", torch.float32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="numba is not installed"):
        resolve_backend("cpu", "cpu", torch.float32)
    with pytest.raises(ValueError, match="triton is not installed"):
        resolve_backend("fused", "cuda", torch.float32)
    assert resolve_backend("auto", "cpu", torch.float32) == "serial"
    assert resolve_backend("auto", "cuda", torch.float32) == "serial"


def test_auto_is_the_fastest_that_runs_here(monkeypatch):
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 runs kernels on the CPU"):
        resolve_backend("fused", "cuda", torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
    assert resolve_backend("auto", "cpu", torch.float64) == "serial"
    assert resolve_backend("auto", "cuda", torch.float32) == "fused"
    assert resolve_backend("auto", "cuda", torch.float64) == "serial"
    assert resolve_backend("reference", "cuda", torch.float64) == "reference"
    assert resolve_backend("parallel_ep", "cuda", torch.float32) == "parallel"


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 2], r"cu_seqlens spans 0..2, expected 0..3, the rows given"),
        ([1, 3], r"cu_seqlens spans 1..3, expected 0..3"),
        ([0, 2, 1, 3], r"cu_seqlens falls from 2 to 1 at index 2: lengths cannot be negative"),
    ],
)
def test_wrong_cu_seqlens_are_named(cu_seqlens, message):
    inputs = make([3], 2, h0=False) | {"cu_seqlens": torch.tensor(cu_seqlens)}
    with pytest.raises(ValueError, match=message):
        bd_lru(**inputs, backend="reference")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("gates", torch.zeros(3, 3), r"gates has shape \(3, 3\), expected \(3, 4\)"),
        ("lambda_", torch.zeros(3), r"lambda_ has shape \(3,\), expected \(2,\)"),
        ("h0", torch.zeros(2, 2), r"h0 has shape \(2, 2\), expected \(1, 2\)"),
        ("z", torch.zeros(3, 2).double(), "z is torch.float64, too wide for u of torch.float32"),
        ("z", torch.zeros(3, 2, device="meta"), "z is on meta, u on cpu"),
        ("u", torch.zeros(3), r"u has shape \(3,\), expected \(N, C\)"),
        ("u", torch.zeros(3, 2).int(), "u is torch.int32, expected a float dtype"),
        ("gates", torch.zeros(3, 4).int(), "gates is torch.int32, expected a float dtype"),
        ("cu_seqlens", torch.tensor([0, 3]).int(), "cu_seqlens is torch.int32 of shape"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    inputs = {k: v.float() if k in NAMES else v for k, v in make([3], 2).items()}
    with pytest.raises(ValueError, match=message):
        bd_lru(**(inputs | {name: wrong}))


@pytest.mark.parametrize("backend", ["reference", "serial", "cpu", "parallel", "fused"])
@pytest.mark.parametrize(
    ("name", "at"),
    [("u", 0), ("gates", 0), ("gates", 3), ("lambda_", 0), ("h0", 0), ("z", 0)],
)
def test_nan_in_any_input_reaches_the_output_and_the_gradients(backend, name, at):
    # A diverged weight must stop the training, not feed it plausible numbers.
    inputs = {k: v.float() if k in NAMES else v for k, v in make([5], 3).items()}
    inputs[name].view(-1)[at] = torch.nan  # row 0, channel 0
    leaves = [inputs[k].requires_grad_() for k in NAMES]
    y, final = bd_lru(**inputs, backend=backend)
    reached = 1 if name == "z" else 5  # rows; else it stays in the state
    assert y[:reached, 0].isnan().all()
    assert final[0, 0].isnan() or name == "z"
    assert y[:, 1:].isfinite().all() and final[0, 1:].isfinite().all()
    _, dgates, dlambda, _, _ = torch.autograd.grad(y.sum() + final.sum(), leaves)
    assert dgates[0, 0].isnan() and dlambda[0].isnan()
    assert dgates[:, [1, 2, 4, 5]].isfinite().all() and dlambda[1:].isfinite().all()
