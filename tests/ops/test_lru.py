from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.lru import cpu, doubling, lru, reference

NAMES = ("u", "lambda_", "h0")
FAST = {"cpu": cpu.lru, "doubling": doubling.lru}
IMPLEMENTATIONS = FAST | {"reference": reference.lru}
LENGTHS = st.lists(st.sampled_from((0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65)), max_size=6)


def make(lengths, states, seed=0, radius=0.95):
    """Inputs by name, in float64 but exact in float32; |lambda| is `radius`, on all phases."""
    random = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    phase = 2 * torch.pi * torch.rand(states, generator=random)
    inputs = {
        "u": torch.randn(n, 2 * states, generator=random),
        "lambda_": radius * torch.stack((phase.cos(), phase.sin())),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "h0": torch.randn(len(lengths), 2 * states, generator=random),
    }
    return {k: v.double() if k in NAMES else v for k, v in inputs.items()}


def single(inputs):
    return {k: v.float() if k in NAMES else v for k, v in inputs.items()}


def evaluate(inputs, dtype, function=reference.lru, heads=(1.0, 1.0)):
    """Outputs and gradients by name, of a random functional of h and the final state."""
    leaves = {k: inputs[k].to(dtype).detach().requires_grad_() for k in NAMES}
    h, final = function(**(inputs | leaves))
    random = torch.Generator().manual_seed(7)
    loss = sum(
        weight * (out * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
        for weight, out in zip(heads, (h, final))
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {"h": h.detach(), "final": final.detach()} | {
        f"d{k}": d for k, d in zip(NAMES, gradients)
    }


def assert_fast_agree(inputs, case="", **kwargs):
    exact, plain = (evaluate(inputs, d, **kwargs) for d in (torch.float64, torch.float32))
    for name, function in FAST.items():
        got = evaluate(inputs, torch.float32, function, **kwargs)
        assert_close("lru", got, plain, exact, f"{name} {case}")


def test_reference_is_the_recurrence_evaluated_by_hand():
    inputs = make([3, 0, 1, 4], 2)
    h, final = reference.lru(**inputs)
    u, lambda_, cu_seqlens, h0 = (x.numpy() for x in inputs.values())
    hand_h, hand_final = np.empty(u.shape), np.array(h0)
    for sequence, (start, stop) in enumerate(pairwise(cu_seqlens)):
        for k in range(2):
            decay = complex(*lambda_[:, k])
            state = complex(h0[sequence, k], h0[sequence, 2 + k])
            for t in range(start, stop):
                state = decay * state + complex(u[t, k], u[t, 2 + k])
                hand_h[t, k], hand_h[t, 2 + k] = state.real, state.imag
            hand_final[sequence, k], hand_final[sequence, 2 + k] = state.real, state.imag
    np.testing.assert_allclose(h, hand_h, rtol=1e-12)
    np.testing.assert_allclose(final, hand_final, rtol=1e-12)


@pytest.mark.parametrize("function", [reference.lru, doubling.lru])
def test_gradients_equal_finite_differences(function):
    inputs = make([2, 0, 5, 1], 2)
    leaves = [inputs[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradcheck(
        lambda u, lambda_, h0: function(u, lambda_, inputs["cu_seqlens"], h0), leaves
    )


@given(
    lengths=LENGTHS,
    states=st.sampled_from((1, 8, 10, 33, 128)),
    radius=st.sampled_from((0.0, 0.3, 0.8, 0.99, 1.0)),
    seed=st.integers(0, 99),
)
@example([0, 0], 8, 0.9, 1)
@example([], 8, 0.9, 2)
@example([1], 1, 0.9, 3)
@example([65, 0, 1, 64], 33, 0.99, 4)
def test_fast_ones_equal_the_float64_reference(lengths, states, radius, seed):
    assert_fast_agree(
        make(lengths, states, seed, radius), f"{lengths=} {states=} {radius=} {seed=}"
    )


@given(lengths=LENGTHS, states=st.sampled_from((1, 5)), seed=st.integers(0, 99))
@example([65, 0, 1, 64], 5, 1)
def test_doubling_equals_the_reference_in_float64(lengths, states, seed):
    inputs = make(lengths, states, seed)
    exact = evaluate(inputs, torch.float64)
    for name, got in evaluate(inputs, torch.float64, doubling.lru).items():
        torch.testing.assert_close(got, exact[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
def test_gradients_come_from_the_output_and_from_the_final_state(heads):
    assert_fast_agree(make([5, 0, 17, 1], 20), heads=heads)


def test_many_tiny_sequences_and_long_ones():
    assert_fast_agree(make([k % 4 for k in range(300)], 8))
    assert_fast_agree(make([2, 0, 5000, 1], 4, radius=0.99))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("cut", [0, 1, 3, 32, 40])
def test_two_calls_joined_by_the_state_equal_one(name, cut):
    function, whole = IMPLEMENTATIONS[name], single(make([40], 10))
    h, final = function(**whole)
    state, parts = whole["h0"], []
    for u in (whole["u"][:cut], whole["u"][cut:]):
        part, state = function(u, whole["lambda_"], torch.tensor([0, len(u)]), state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, final, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_packed_equals_one_by_one(name):
    function, inputs = IMPLEMENTATIONS[name], single(make([3, 0, 18, 1, 2, 7] * 4, 10))
    h, final = function(**inputs)
    for b, (start, stop) in enumerate(pairwise(inputs["cu_seqlens"].tolist())):
        cu_seqlens, h0 = torch.tensor([0, stop - start]), inputs["h0"][b : b + 1]
        one_h, one_final = function(inputs["u"][start:stop], inputs["lambda_"], cu_seqlens, h0)
        torch.testing.assert_close(one_h, h[start:stop], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one_final[0], final[b], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_row_reaches_an_earlier_one_or_another_sequence(name):
    """Not even a NaN."""
    function, inputs = IMPLEMENTATIONS[name], single(make([9, 40, 0, 12], 10))
    h, final = function(**inputs)
    inputs["u"][30] = torch.nan
    changed, changed_final = function(**inputs)
    assert torch.equal(changed[:30], h[:30]) and torch.equal(changed[49:], h[49:])
    assert changed[30:49].isnan().all()
    assert torch.equal(changed_final[[0, 2, 3]], final[[0, 2, 3]])


@pytest.mark.parametrize("name", FAST)
def test_slices_of_larger_buffers_give_the_same(name):
    def strided(cu_seqlens, **tensors):
        tensors = {k: v.repeat_interleave(2, -1)[:, ::2] for k, v in tensors.items()}
        return FAST[name](**tensors, cu_seqlens=cu_seqlens.repeat_interleave(2)[::2])

    inputs = make([5, 33, 0], 10)
    exact = evaluate(inputs, torch.float32, FAST[name])
    for key, got in evaluate(inputs, torch.float32, strided).items():
        assert torch.equal(got, exact[key]), key


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_may_be_asked_of_one_input_and_of_one_output(name, wanted):
    inputs = single(make([3, 2], 2))
    every = {head: evaluate(inputs, torch.float32, heads=head) for head in ((1, 0), (0, 1))}
    inputs[wanted].requires_grad_()
    random = torch.Generator().manual_seed(7)
    for out, head in zip(IMPLEMENTATIONS[name](**inputs), every):
        weights = torch.randn(out.shape, generator=random, dtype=torch.float64)
        (got,) = torch.autograd.grad((out * weights).sum(), inputs[wanted], retain_graph=True)
        torch.testing.assert_close(got, every[head][f"d{wanted}"], atol=1e-5, rtol=1e-5)


def test_gradients_are_the_same_on_one_thread_and_on_two():
    inputs, results = make([30, 5, 0, 70] * 8, 33), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(inputs, torch.float32, cpu.lru))
    finally:
        torch.set_num_threads(threads)
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(backend, dtype):
    inputs = single(make([20, 3], 8))
    halved = inputs["u"].to(dtype)
    h, final = lru(**(inputs | {"u": halved}), backend=backend)
    wide_h, wide_final = lru(**(inputs | {"u": halved.float()}), backend=backend)
    assert h.dtype == dtype and final.dtype == torch.float32
    assert torch.equal(h, wide_h.to(dtype)) and torch.equal(final, wide_final)


def test_h0_is_zeros_when_left_out():
    inputs = make([3, 0, 4], 2)
    inputs["h0"].zero_()
    for backend, chosen in (("reference", inputs), ("auto", inputs), ("cpu", single(inputs))):
        expected = lru(**chosen, backend=backend)
        got = lru(chosen["u"], chosen["lambda_"], chosen["cu_seqlens"], backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_doubling_reads_the_longest_length_on_the_host(monkeypatch):
    """Else it would wait for a device. With a shorter one it has too few rounds."""
    inputs, seen = make([3, 0, 9], 2), []
    expected = doubling.lru(**inputs)
    assert not torch.equal(
        doubling.lru(**inputs, cu_seqlens_host=torch.tensor([0, 2]))[0], expected[0]
    )
    original = doubling.lru
    monkeypatch.setattr(doubling, "lru", lambda *a, **k: [seen.append(k), original(*a, **k)][1])
    host = inputs["cu_seqlens"].clone()
    got = lru(**inputs, cu_seqlens_host=host)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert seen[0]["cu_seqlens_host"] is host


def start_not_reset(cu_seqlens, h0, **k):
    h, final = reference.lru(cu_seqlens=cu_seqlens[[0, -1]], h0=h0[:1], **k)
    return h, final.expand_as(h0)


def carry_dropped_at_a_power_of_two(cu_seqlens, h0, **k):
    edges = torch.cat((cu_seqlens, torch.tensor([16]))).sort().values
    h, final = reference.lru(cu_seqlens=edges, h0=torch.cat((h0[:1], 0 * h0[:1], h0[1:])), **k)
    return h, torch.cat((final[:1], final[2:]))


def phase_of_the_other_sign(lambda_, **k):
    return reference.lru(lambda_=torch.stack((lambda_[0], -lambda_[1])), **k)


def gradient_not_conjugated(lambda_, **k):
    lambda_ = lambda_.clone()
    lambda_.register_hook(lambda gradient: torch.stack((gradient[0], -gradient[1])))
    return reference.lru(lambda_=lambda_, **k)


def h0_gradient_lost(h0, **k):
    return reference.lru(h0=h0.detach() + 0 * h0, **k)


@pytest.mark.parametrize("fault", [
    start_not_reset, carry_dropped_at_a_power_of_two, phase_of_the_other_sign,
    gradient_not_conjugated, h0_gradient_lost,
])  # fmt: skip
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([40, 9, 4], 4, radius=0.9)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    faulty = evaluate(inputs, torch.float32, fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("lru", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


@pytest.mark.parametrize(
    ("backend", "dtype", "runs"),
    [
        ("auto", torch.float32, "cpu"),
        ("auto", torch.bfloat16, "cpu"),
        ("auto", torch.float64, "doubling"),
        ("cpu", torch.float32, "cpu"),
        ("reference", torch.float64, "reference"),
        ("doubling", torch.float32, "doubling"),
    ],
)
def test_a_name_runs_what_it_names(backend, dtype, runs, monkeypatch):
    called = []
    for name, module in (("cpu", cpu), ("doubling", doubling), ("reference", reference)):

        def spy(*arguments, name=name, function=module.lru, **kwargs):
            called.append(name)
            return function(*arguments, **kwargs)

        monkeypatch.setattr(module, "lru", spy)
    u = torch.ones(2, 4, dtype=dtype)
    lambda_ = torch.zeros(2, 2, dtype=torch.promote_types(dtype, torch.float32))
    lru(u, lambda_, torch.tensor([0, 2]), backend=backend)
    assert called == [runs]


def test_a_backend_that_cannot_run_says_why():
    inputs = make([3], 2)
    with pytest.raises(ValueError, match=r"scan=cpu cannot run: it needs float32.*float64"):
        lru(**inputs, backend="cpu")
    for scan in ("fused", "parallel_ep", "quick"):
        with pytest.raises(ValueError, match=f"scan='{scan}': a complex recurrence has reference"):
            lru(**single(inputs), backend=scan)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("u", torch.zeros(3), r"u has shape \(3,\), expected \(N, 2S\)"),
        ("u", torch.zeros(3, 5), r"u has shape \(3, 5\), expected \(N, 2S\)"),
        ("lambda_", torch.zeros(4), r"lambda_ has shape \(4,\), expected \(2, 2\)"),
        ("lambda_", torch.zeros(2, 3), r"lambda_ has shape \(2, 3\), expected \(2, 2\)"),
        ("lambda_", torch.zeros(2, 2).double(), "lambda_ is torch.float64, .* of torch.float32"),
        ("lambda_", torch.zeros(2, 2, device="meta"), "lambda_ is on meta, u on cpu"),
        ("h0", torch.zeros(2, 4), r"h0 has shape \(2, 4\), expected \(1, 4\)"),
        ("cu_seqlens", torch.tensor([0, 3]).int(), "cu_seqlens is torch.int32 of shape"),
        ("cu_seqlens", torch.tensor([0, 4]), r"cu_seqlens spans 0\.\.4, expected 0\.\.3"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        lru(**(single(make([3], 2)) | {name: wrong}))
