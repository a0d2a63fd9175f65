from itertools import pairwise

import numpy as np
import pytest
import torch
from conv_faults import (
    carry_dropped_at_a_block_edge,
    start_not_reset,
    state_gradient_lost,
    tap_shifted_by_one,
)
from hypothesis import example, given
from hypothesis import strategies as st
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.causal_conv import causal_conv

NAMES = ("x", "weight", "bias", "state")
LENGTHS = st.lists(st.sampled_from((0, 1, 2, 3, 4, 7, 63, 64, 65)), max_size=6)


def make(lengths, channels, width=4, seed=0, state=True):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return {
        "x": normal(sum(lengths), channels),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "state": normal(len(lengths), width - 1, channels) if state else None,
    }


def single(inputs):
    return {k: v.float() if k in NAMES and v is not None else v for k, v in inputs.items()}


def evaluate(inputs, dtype, backend="reference", silu=True, function=causal_conv, heads=(1.0, 1.0)):
    """Outputs and gradients by name, of a random functional of u and the final state."""
    leaves = {
        k: inputs[k].to(dtype).detach().requires_grad_() for k in NAMES if inputs[k] is not None
    }
    u, final = function(**(inputs | leaves), silu=silu, backend=backend)
    random = torch.Generator().manual_seed(7)
    loss = sum(
        weight * (out * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
        for weight, out in zip(heads, (u, final))
    )
    names, tensors = zip(*leaves.items())
    gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
    return {"u": u.detach(), "final": final.detach()} | {
        f"d{k}": d for k, d in zip(names, gradients)
    }


def assert_cpu_agrees(inputs, case="", **kwargs):
    exact = evaluate(inputs, torch.float64, **kwargs)
    plain = evaluate(inputs, torch.float32, **kwargs)
    got = evaluate(inputs, torch.float32, "cpu", **kwargs)
    assert_close("causal_conv", got, plain, exact, case)


def assert_same(backend, got, expected):
    """Bit for bit on the CPU kernel; torch's own silu rounds by where an element lies."""
    allowed = 0 if backend == "cpu" else 2e-6
    torch.testing.assert_close(got, expected, atol=allowed, rtol=allowed)


@pytest.mark.parametrize("width", [1, 2, 4, 16])
def test_reference_is_the_sum_evaluated_by_hand(width):
    inputs = make([3, 0, 1, 6], 2, width)
    u, final = (t.numpy() for t in causal_conv(**inputs, silu=False, backend="reference"))
    x, weight, bias, cu, state = (v.numpy() for v in inputs.values())
    for b in range(4):
        rows = np.concatenate((state[b], x[cu[b] : cu[b + 1]]))  # the state comes before
        for t in range(cu[b + 1] - cu[b]):
            by_hand = bias + sum(weight[:, k] * rows[t + k] for k in range(width))
            np.testing.assert_allclose(u[cu[b] + t], by_hand, rtol=1e-12)
        np.testing.assert_array_equal(final[b], rows[len(rows) - width + 1 :])
    with_silu, _ = causal_conv(**inputs, backend="reference")
    np.testing.assert_allclose(with_silu, u / (1 + np.exp(-u)), rtol=1e-12)


def test_gradients_equal_finite_differences():
    inputs = make([2, 0, 5], 2)
    leaves = [inputs[k].requires_grad_() for k in NAMES]

    def function(x, weight, bias, state):
        return causal_conv(x, weight, bias, inputs["cu_seqlens"], state, backend="reference")

    assert torch.autograd.gradcheck(function, leaves)


@given(
    lengths=LENGTHS,
    channels=st.sampled_from((1, 16, 20, 33, 128)),
    width=st.sampled_from((1, 2, 3, 4, 7, 16)),
    state=st.booleans(),
    silu=st.booleans(),
    seed=st.integers(0, 99),
)
@example([0, 0], 16, 4, True, True, 1)
@example([], 16, 4, False, True, 2)
@example([1, 2, 3, 65], 33, 4, True, True, 3)
def test_cpu_equals_the_float64_reference(lengths, channels, width, state, silu, seed):
    case = f"{lengths=} {channels=} {width=} {state=} {silu=} {seed=}"
    assert_cpu_agrees(make(lengths, channels, width, seed, state), case, silu=silu)


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
def test_gradients_come_from_the_output_and_from_the_final_state(heads):
    assert_cpu_agrees(make([5, 0, 17, 1], 20), heads=heads)


def test_many_tiny_sequences_and_one_long_one():
    assert_cpu_agrees(make([k % 5 for k in range(300)], 16))
    assert_cpu_agrees(make([2, 0, 1025, 1], 20))


def test_inputs_far_from_zero_stay_finite():
    inputs = make([9, 5], 16)
    assert_cpu_agrees(inputs | {"bias": inputs["bias"] - 300})
    assert_cpu_agrees(inputs | {"bias": inputs["bias"] + 300})


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7])
def test_two_calls_joined_by_the_state_equal_one(backend, cut):
    whole = single(make([10], 20))
    u, final = causal_conv(**whole, backend=backend)
    state, parts = whole["state"], []
    for x in (whole["x"][:cut], whole["x"][cut:]):
        part = whole | {"x": x, "cu_seqlens": torch.tensor([0, len(x)]), "state": state}
        part_u, state = causal_conv(**part, backend=backend)
        parts.append(part_u)
    assert_same(backend, torch.cat(parts), u)
    assert torch.equal(state, final)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_packed_equals_one_by_one_bit_for_bit(backend):
    inputs = single(make([3, 0, 18, 1, 2, 7] * 4, 20))
    u, final = causal_conv(**inputs, backend=backend)
    bounds = inputs["cu_seqlens"].tolist()
    for b, (start, stop) in enumerate(pairwise(bounds)):
        one = inputs | {
            "x": inputs["x"][start:stop],
            "cu_seqlens": torch.tensor([0, stop - start]),
            "state": inputs["state"][b : b + 1],
        }
        one_u, one_final = causal_conv(**one, backend=backend)
        assert_same(backend, one_u, u[start:stop])
        assert torch.equal(one_final[0], final[b])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_later_rows_do_not_reach_earlier_outputs(backend):
    inputs = single(make([9, 40], 20))
    u, _ = causal_conv(**inputs, backend=backend)
    later = inputs["x"].clone()
    later[30:] += 1
    changed, _ = causal_conv(**(inputs | {"x": later}), backend=backend)
    assert torch.equal(changed[:30], u[:30])
    assert not torch.equal(changed[30:], u[30:])


def test_slices_of_larger_buffers_give_the_same():
    def strided(**arguments):
        return causal_conv(
            **{k: v.repeat_interleave(2, -1)[..., ::2] if k in NAMES else v
               for k, v in arguments.items()}
        )  # fmt: skip

    inputs = make([5, 17, 0], 20)
    exact = evaluate(inputs, torch.float32, "cpu")
    got = evaluate(inputs, torch.float32, "cpu", function=strided)
    for name in exact:
        assert torch.equal(got[name], exact[name]), name


def test_gradients_are_the_same_on_one_thread_and_on_two():
    inputs = make([30, 5, 0, 70] * 8, 33)
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


@pytest.mark.parametrize(
    "fault",
    [start_not_reset, tap_shifted_by_one, carry_dropped_at_a_block_edge, state_gradient_lost],
)
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([20, 9, 4], 20)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    faulty = evaluate(inputs, torch.float32, function=fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("causal_conv", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


def test_it_takes_the_backend_names_of_the_scan():
    inputs = make([3, 2], 4)
    expected, _ = causal_conv(**inputs, backend="reference")
    for backend in ("serial", "auto"):
        assert torch.equal(causal_conv(**inputs, backend=backend)[0], expected)
    with pytest.raises(ValueError, match="scan=cpu cannot run"):
        causal_conv(**inputs, backend="cpu")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("weight", torch.zeros(3, 4), r"weight has shape \(3, 4\), expected \(2, 4\)"),
        ("weight", torch.zeros(2, 0), r"weight has shape \(2, 0\), expected \(2, W\) with"),
        ("weight", torch.zeros(4), r"weight has shape \(4,\), expected \(2, W\)"),
        ("weight", torch.zeros(()), r"weight has shape \(\), expected \(2, W\)"),
        ("weight", torch.zeros(2, 4).int(), "weight is torch.int32, expected a float dtype"),
        ("x", torch.zeros(3), r"x has shape \(3,\), expected \(N, C\)"),
        ("x", torch.zeros(3, 2).long(), "x is torch.int64, expected a float dtype"),
        ("bias", torch.zeros(3), r"bias has shape \(3,\), expected \(2,\)"),
        ("state", torch.zeros(1, 4, 2), r"state has shape \(1, 4, 2\), expected \(1, 3, 2\)"),
        ("bias", torch.zeros(2).double(), "bias is torch.float64, too wide for x of torch.float32"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        causal_conv(**(single(make([3], 2)) | {name: wrong}))
