"""The Triton convolution, on the GPU, or interpreted on the CPU where there is none."""

import importlib.util
from itertools import pairwise

import pytest
import torch
from aot import Kernel, assert_fits, assert_long_offsets, assert_wide, compile_report
from conv_faults import (
    carry_dropped_at_a_block_edge,
    start_not_reset,
    state_gradient_lost,
    tap_shifted_by_one,
)
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.backends import interpreted
from recblr.ops.causal_conv import causal_conv

pytest.importorskip("triton", reason="triton is not installed (pip install triton, Linux only)")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and not interpreted(), reason="no CUDA device: set TRITON_INTERPRET=1"
    ),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # exp, in numpy
]

NAMES = ("x", "weight", "bias", "state")
BF16 = torch.bfloat16


def make(lengths, channels, width=4, seed=0, state=True):
    """Values that bfloat16 holds exactly, in float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random).bfloat16().double().to(DEVICE)

    return {
        "x": normal(sum(lengths), channels),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(DEVICE),
        "state": normal(len(lengths), width - 1, channels) if state else None,
    }


def cast(inputs, dtype):
    """x in `dtype`, the other floats in what it is computed in."""
    wide = torch.float32 if dtype == BF16 else dtype
    return {
        k: v if v is None or k == "cu_seqlens" else v.to(dtype if k == "x" else wide)
        for k, v in inputs.items()
    }


def evaluate(inputs, dtype, backend="reference", silu=True, function=causal_conv, heads=(1, 1)):
    """Outputs and gradients by name, of a random functional of u and the final state."""
    inputs = cast(inputs, dtype)
    leaves = {k: inputs[k].detach().requires_grad_() for k in NAMES if inputs[k] is not None}
    u, final = function(**(inputs | leaves), silu=silu, backend=backend)
    random = torch.Generator().manual_seed(7)
    loss = sum(
        head * (out * torch.randn(out.shape, generator=random).bfloat16().to(DEVICE).double()).sum()
        for head, out in zip(heads, (u, final))
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {"u": u.detach(), "final": final.detach()} | {
        f"d{k}": d for k, d in zip(leaves, gradients)
    }


def assert_agrees(inputs, dtype=torch.float32, **kwargs):
    exact = evaluate(inputs, torch.float64, **kwargs)
    plain = evaluate(inputs, dtype, **kwargs)
    got = evaluate(inputs, dtype, "fused", **kwargs)
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in plain.items()}
    assert_close("causal_conv", got, plain, exact)


@pytest.mark.parametrize("lengths", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0, 0]])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("silu", [True, False])
def test_sequences_about_as_short_as_the_width(lengths, width, silu):
    assert_agrees(make(lengths, 33, width), silu=silu)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5])
def test_a_single_short_sequence(length):
    assert_agrees(make([length], 4, width=4))


@pytest.mark.parametrize("lengths", [[15, 16, 17], [63, 64, 65], [31, 1, 32, 2, 33]])
@pytest.mark.parametrize("channels", [1, 16, 20, 33])
def test_it_equals_the_float64_reference(lengths, channels):
    assert_agrees(make(lengths, channels, seed=channels))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing_but_empty_sequences(lengths):
    assert_agrees(make(lengths, 16))
    assert_agrees(make(lengths, 16, width=1))


def test_width_is_any_and_the_state_may_be_missing():
    assert_agrees(make([2, 9, 0, 40], 20, width=7))
    assert_agrees(make([2, 9, 0, 40], 20, width=3, state=False))


@pytest.mark.parametrize("heads", [(1, 0), (0, 1)])
def test_gradients_come_from_the_output_and_from_the_final_state(heads):
    assert_agrees(make([5, 0, 17, 1], 20), heads=heads)


def test_inputs_far_from_zero_stay_finite():
    inputs = make([9, 5], 16)
    assert_agrees(inputs | {"bias": inputs["bias"] - 300})
    assert_agrees(inputs | {"bias": inputs["bias"] + 300})


def test_bfloat16_is_computed_in_float32():
    inputs = make([3, 0, 18, 1, 2, 40], 20)
    assert_agrees(inputs, BF16)
    got, single = (evaluate(inputs, d, "fused") for d in (BF16, torch.float32))
    one_ulp = torch.finfo(BF16).eps  # the interpreter cuts where the GPU rounds
    torch.testing.assert_close(got["u"].float(), single["u"], rtol=one_ulp, atol=0)
    for name in ("final", "dweight", "dbias", "dstate"):
        torch.testing.assert_close(got[name], single[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "serial", "cpu", "parallel"])
def test_every_backend_takes_half_precision_with_float32_parameters(backend, dtype):
    if backend == "cpu" and (DEVICE == "cuda" or importlib.util.find_spec("numba") is None):
        pytest.skip("needs the CPU and numba (pip install numba)")
    inputs = cast(make([3, 0, 18], 20), torch.float32)
    u, final = causal_conv(**inputs, backend="reference")
    half, half_final = causal_conv(**(inputs | {"x": inputs["x"].to(dtype)}), backend=backend)
    assert half.dtype == dtype
    assert half_final.dtype == torch.float32
    torch.testing.assert_close(half.float(), u, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert torch.equal(half_final, final)


def test_half_precision_parameters_get_gradients_in_their_own_precision():
    inputs = cast(make([3, 18], 20), torch.float32)
    weight = inputs["weight"].bfloat16().requires_grad_()
    u, _ = causal_conv(**(inputs | {"weight": weight}), backend="fused")
    u.sum().backward()
    assert weight.grad.dtype == BF16


def test_float64_runs_the_reference_and_fused_refuses_it():
    inputs = make([3, 18], 20)
    expected, _ = causal_conv(**inputs, backend="reference")
    assert torch.equal(causal_conv(**inputs, backend="parallel")[0], expected)
    with pytest.raises(ValueError, match="scan=fused cannot run"):
        causal_conv(**inputs, backend="fused")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("weight", torch.zeros(2, 4, device="meta"), "weight is on meta, x on"),
        ("bias", torch.zeros(2).double(), "bias is torch.float64, too wide for x of torch.float32"),
        ("cu_seqlens", torch.tensor([0, 3]).int(), "cu_seqlens is torch.int32"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        causal_conv(**(cast(make([3], 2), torch.float32) | {name: wrong}), backend="fused")


def test_packed_equals_one_by_one_bit_for_bit():
    inputs = cast(make([3, 0, 18, 1, 2, 7, 0], 20), torch.float32)
    packed = evaluate(inputs, torch.float32, "fused", heads=(0, 0))
    for b, (start, stop) in enumerate(pairwise(inputs["cu_seqlens"].tolist())):
        one = inputs | {
            "x": inputs["x"][start:stop],
            "cu_seqlens": torch.tensor([0, stop - start], device=DEVICE),
            "state": inputs["state"][b : b + 1],
        }
        u, final = causal_conv(**one, backend="fused")
        assert torch.equal(u, packed["u"][start:stop])
        assert torch.equal(final[0], packed["final"][b])


def test_gradients_of_packed_inputs_equal_those_one_by_one():
    inputs = cast(make([3, 0, 18, 1, 2, 7, 0], 20), torch.float32)

    def gradients(part, pick):
        leaves = [part[k].detach().requires_grad_() for k in ("x", "state")]
        u, final = causal_conv(**(part | dict(zip(("x", "state"), leaves))), backend="fused")
        (u * pick).sum().add(final.sum()).backward()
        return [leaf.grad for leaf in leaves]

    random = torch.Generator().manual_seed(1)
    pick = torch.randn(inputs["x"].shape, generator=random).to(DEVICE)
    dx, dstate = gradients(inputs, pick)
    for b, (start, stop) in enumerate(pairwise(inputs["cu_seqlens"].tolist())):
        one = inputs | {
            "x": inputs["x"][start:stop],
            "cu_seqlens": torch.tensor([0, stop - start], device=DEVICE),
            "state": inputs["state"][b : b + 1],
        }
        one_dx, one_dstate = gradients(one, pick[start:stop])
        assert torch.equal(one_dx, dx[start:stop])
        assert torch.equal(one_dstate[0], dstate[b])


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7])
def test_two_calls_joined_by_the_state_equal_one(cut):
    whole = cast(make([10], 20), torch.float32)
    u, final = causal_conv(**whole, backend="fused")
    state, parts = whole["state"], []
    for x in (whole["x"][:cut], whole["x"][cut:]):
        cu = torch.tensor([0, len(x)], device=DEVICE)
        part = whole | {"x": x, "cu_seqlens": cu, "state": state}
        part_u, state = causal_conv(**part, backend="fused")
        parts.append(part_u)
    assert torch.equal(torch.cat(parts), u)
    assert torch.equal(state, final)


def test_slices_of_larger_buffers_give_the_same():
    def strided(**arguments):
        u, final = causal_conv(
            **{k: v.repeat_interleave(2, -1)[..., ::2] if k in NAMES else v
               for k, v in arguments.items()}
        )  # fmt: skip
        return u.t().contiguous().t(), final

    inputs = make([5, 17, 0], 20)
    exact = evaluate(inputs, torch.float32, "fused")
    got = evaluate(inputs, torch.float32, "fused", function=strided)
    for name in exact:
        assert torch.equal(got[name], exact[name]), name


def test_an_expanded_gradient_is_read_as_what_it_stands_for():
    inputs = cast(make([5, 17, 0], 20), torch.float32)
    x = inputs["x"].requires_grad_()
    u, _ = causal_conv(**inputs, silu=False, backend="fused")
    u.sum().backward()
    inside = inputs["weight"].sum(1)  # all four taps read a row that three follow
    torch.testing.assert_close(x.grad[5:19], inside.expand(14, -1), rtol=1e-6, atol=1e-6)


def test_the_same_bits_every_time():
    inputs = make([30, 5, 0, 70], 33)
    first, second = (evaluate(inputs, torch.float32, "fused") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def gradient_of_short_sequences_lost(x, cu_seqlens, **k):
    short = torch.repeat_interleave(cu_seqlens.diff(), cu_seqlens.diff())[:, None] < 3
    return causal_conv(x=torch.where(short, x.detach(), x), cu_seqlens=cu_seqlens, **k)


@pytest.mark.parametrize(
    "fault",
    [
        start_not_reset,
        tap_shifted_by_one,
        carry_dropped_at_a_block_edge,
        state_gradient_lost,
        gradient_of_short_sequences_lost,
    ],
)
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([20, 2, 9, 4], 20)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    faulty = evaluate(inputs, torch.float32, "fused", function=fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("causal_conv", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


def kernels():
    from recblr.ops.causal_conv import triton as conv

    constants = {
        "width": 4, "silu": True, "rows": conv.ROWS, "columns": conv.CHANNELS, "slots": 8,
    }  # fmt: skip
    listed = []
    for io in ("fp32", "bf16"):
        types = {"n": "i32", "state_rows": "i32", "channels": "i32"}
        types |= dict.fromkeys(("cu", "sequences"), "*i64")
        types |= dict.fromkeys(("x", "u", "du", "dx"), f"*{io}")
        for function in (conv.forward, conv.backward):
            names = function.arg_names
            listed.append(
                Kernel(
                    f"{function.__name__} {io}",
                    function,
                    {k: types.get(k, "*fp32") for k in names if k not in constants},
                    {k: v for k, v in constants.items() if k in names},
                    multiples=("channels",),
                    warps=conv.WARPS,
                )
            )
    return listed


# Bits that a row's access moves at a time, and how many such loads and stores the code holds:
# forward W rows of x; backward 2W-1, and W of du.
ACCESSES = {
    "forward fp32": (128, 4, 2), "backward fp32": (128, 11, 2),
    "forward bf16": (64, 4, 1), "backward bf16": (64, 11, 1),
}  # fmt: skip


def test_compiled_for_gpus_nothing_spills_and_a_lane_moves_four_channels_at_a_time():
    rows = compile_report("test_conv_triton:kernels")
    assert len(rows) == 8
    assert_fits([r for r in rows if "forward" in r["kernel"]], registers=64, programs=8)
    assert_fits([r for r in rows if "backward" in r["kernel"]], registers=128, programs=4)
    for row in rows:
        assert_wide(row, *ACCESSES[row["kernel"]])


def test_compiled_for_gpus_offsets_are_64_bits_wide():
    assert_long_offsets(compile_report("test_conv_triton:kernels"))
