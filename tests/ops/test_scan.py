from itertools import pairwise

import numpy as np
import pytest
import torch
from aot import Kernel, assert_fits, assert_long_offsets, assert_wide, compile_report
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.scan import choose_backend, scan
from recblr.ops.scan.sweeps import scan_by_sweeps

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"  # where the kernel is interpreted, about 0.1 ms per element
NAMES = ("a", "u", "h0")
LENGTHS = [0, 1, 2, 3, 15, 16, 17, 0, 31, 32, 33, 63, 64, 65]
DECAYS = (0.9, 0.999, 1 - 1e-6, 0.0, 1.0, "mixed")


def make(lengths, channels, decay="mixed", seed=0, dtype=torch.float32):
    """Inputs by name, in float64 but exact in `dtype`. "mixed" draws each decay from DECAYS."""
    random = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    if decay == "mixed":
        kinds = torch.randint(len(DECAYS), (n, channels), generator=random)
        a = torch.cat((torch.tensor(DECAYS[:-1]), torch.tensor([0.97])))[kinds]
    else:
        a = torch.full((n, channels), decay)
    u, h0 = (torch.randn(rows, channels, generator=random) for rows in (n, len(lengths)))
    inputs = {name: x.to(dtype).double() for name, x in (("a", a), ("u", u), ("h0", h0))}
    return inputs | {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0)}


def evaluate(inputs, dtype, backend="reference", heads=(1.0, 1.0), function=scan):
    """Outputs and gradients by name, of a random functional of h and the final state."""
    leaves = {k: inputs[k].to(DEVICE, dtype).detach().requires_grad_() for k in NAMES}
    h, final = function(**leaves, cu_seqlens=inputs["cu_seqlens"].to(DEVICE), backend=backend)
    random = torch.Generator().manual_seed(7)
    loss = sum(
        weight * (out * torch.randn(out.shape, generator=random).to(out)).sum()
        for weight, out in zip(heads, (h, final))
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    results = {"h": h, "final": final} | {f"d{k}": d for k, d in zip(NAMES, gradients)}
    return {k: v.detach().cpu() for k, v in results.items()}


def assert_triton_agrees(inputs, dtype=torch.float32, case="", **kwargs):
    exact, plain, got = (
        evaluate(inputs, d, backend, **kwargs)
        for d, backend in ((torch.float64, "reference"), (dtype, "reference"), (dtype, "triton"))
    )
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in plain.items()}
    assert_close("scan", got, plain, exact, case)


def on_device(inputs):
    return {k: (v.float() if k in NAMES else v).to(DEVICE) for k, v in inputs.items()}


def test_reference_is_the_recurrence_evaluated_by_hand():
    inputs = make([3, 0, 1, 4], 2)
    h, final = scan(**inputs, backend="reference")
    a, u, h0, cu_seqlens = (inputs[k].numpy() for k in (*NAMES, "cu_seqlens"))
    hand_h, hand_final = np.empty(u.shape), np.array(h0)
    for sequence, (start, stop) in enumerate(pairwise(cu_seqlens)):
        for channel in range(u.shape[1]):
            state = h0[sequence, channel]
            for t in range(start, stop):
                state = a[t, channel] * state + u[t, channel]
                hand_h[t, channel] = state
            hand_final[sequence, channel] = state
    np.testing.assert_array_equal(h, hand_h)
    np.testing.assert_array_equal(final, hand_final)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradients_equal_finite_differences(backend):
    inputs = make([2, 0, 1], 2)
    cu_seqlens = inputs["cu_seqlens"].to(DEVICE)

    def function(a, u, h0):
        return scan(a, u, cu_seqlens, h0, backend)

    leaves = [inputs[k].to(DEVICE).requires_grad_() for k in NAMES]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("decay", DECAYS)
def test_triton_equals_the_float64_reference_at_each_decay(decay):
    assert_triton_agrees(make(LENGTHS, 2, decay), case=f"{decay=}")


@pytest.mark.parametrize("channels", [1, 16, 20, 33, *([64, 128, 300] if CUDA else [])])
def test_triton_equals_the_float64_reference_at_each_width(channels):
    lengths = [1000, *LENGTHS, 4099] if CUDA else [17, 0, 65]
    assert_triton_agrees(make(lengths, channels), case=f"{channels=}")


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [k % 3 for k in range(40)]])
def test_empty_and_tiny_sequences(lengths):
    assert_triton_agrees(make(lengths, 2), case=f"{lengths=}")


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
def test_gradients_come_from_h_and_from_the_final_state(heads):
    assert_triton_agrees(make([5, 0, 34, 1], 4, 0.999), heads=heads, case=f"{heads=}")


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_may_be_asked_of_one_input_and_of_one_output(name):
    inputs = on_device(make([3, 2], 2))
    inputs[name].requires_grad_()
    gradients = {}
    for backend in ("reference", "triton"):
        h, final = scan(**inputs, backend=backend)
        gradients[backend] = [  # of a sum: the gradient that arrives has strides of zero
            torch.autograd.grad(out.sum(), inputs[name], retain_graph=True)[0] for out in (h, final)
        ]
    for got, expected in zip(gradients["triton"], gradients["reference"]):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_h0_is_zeros_when_left_out():
    inputs = on_device(make([3, 0, 4], 2))
    zeros = torch.zeros_like(inputs.pop("h0"))
    for backend in ("reference", "triton"):
        for got, expected in zip(scan(**inputs, backend=backend), scan(**inputs, h0=zeros)):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(dtype):
    inputs = make([40, 3], 4, decay=0.9, dtype=dtype)
    assert_triton_agrees(inputs, dtype, case=f"{dtype=}")
    for backend in ("reference", "triton"):
        halves = {k: v.to(dtype) if k in NAMES else v for k, v in on_device(inputs).items()}
        h, final = scan(**halves, backend=backend)
        assert h.dtype == dtype and final.dtype == torch.float32
        h, _ = scan(**halves | {"a": halves["a"].float()}, backend=backend)
        assert h.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_packed_equals_one_by_one(backend):
    inputs = on_device(make([3, 0, 33, 1, 2, 7], 4))
    h, final = scan(**inputs, backend=backend)
    for b, (start, stop) in enumerate(pairwise(inputs["cu_seqlens"].tolist())):
        cu_seqlens = torch.tensor([0, stop - start], device=DEVICE)
        a, u, h0 = inputs["a"][start:stop], inputs["u"][start:stop], inputs["h0"][b : b + 1]
        one_h, one_final = scan(a, u, cu_seqlens, h0, backend)
        torch.testing.assert_close(one_h, h[start:stop], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one_final[0], final[b], atol=1e-6, rtol=1e-6)


def test_two_calls_joined_by_the_state_equal_one():
    whole = on_device(make([40], 2, 0.999))
    h, final = scan(**whole, backend="triton")
    for cut in (0, 1, 32, 40):
        state, parts = whole["h0"], []
        for rows in (slice(None, cut), slice(cut, None)):
            a, u = whole["a"][rows], whole["u"][rows]
            cu_seqlens = torch.tensor([0, len(u)], device=DEVICE)
            part, state = scan(a, u, cu_seqlens, state, "triton")
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts), h, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, final, atol=1e-5, rtol=1e-5)


def test_slices_of_larger_buffers_give_the_same():
    def strided(cu_seqlens, backend, **tensors):
        tensors = {k: v.repeat_interleave(2, -1)[:, ::2] for k, v in tensors.items()}
        return scan(**tensors, cu_seqlens=cu_seqlens.repeat_interleave(2)[::2], backend=backend)

    assert_triton_agrees(make([5, 33, 0], 3), function=strided)


@pytest.mark.skipif(not CUDA, reason="needs CUDA and 20 GB of its memory")
def test_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free GPU memory")
    rows, channels = 2**15, 2**16
    a = torch.full((rows + 3, channels), 0.5, device=DEVICE, dtype=torch.bfloat16)
    u = torch.ones_like(a)
    u[-3:] = torch.randn(3, channels, device=DEVICE)
    cu_seqlens = torch.tensor([0, rows, rows + 3], device=DEVICE)
    h, final = scan(a, u, cu_seqlens, backend="triton")
    last = a[-3:].double(), u[-3:].double(), cu_seqlens[:2].clamp(max=3)
    exact, exact_final = scan(*last, backend="reference")
    torch.testing.assert_close(final[1].double(), exact_final[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h[-3:].double(), exact, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(final[0], torch.full_like(final[0], 2), atol=1e-5, rtol=1e-5)


def kernels():
    """For aot.py: both kernels with the types of a launch in float32 and in bfloat16."""
    from recblr.ops.scan import triton as kernel

    constants = {"ROWS": kernel.ROWS, "CHANNELS": kernel.CHANNELS}
    states = dict.fromkeys(("h0", "final", "dfinal", "dh0"), "*fp32")
    common = states | {"cu_seqlens": "*i64", "C": "i32"}
    listed = []
    for dtype in ("fp32", "bf16"):
        types = common | dict.fromkeys(("a", "u", "h", "dh", "da", "du"), f"*{dtype}")
        for function in (kernel.forward, kernel.backward):
            signature = {k: types[k] for k in function.arg_names if k in types}
            name = f"scan {function.__name__} {dtype}"
            listed.append(Kernel(name, function, signature, constants, warps=kernel.WARPS))
    return listed


def test_kernels_compile_for_a100_and_h100_without_spills_and_with_wide_loads():
    rows = compile_report("test_scan:kernels")
    assert len(rows) == 8
    assert_fits(rows, registers=96, programs=5)
    for row in rows:  # a thread moves two vectors per tensor in float32, one in bfloat16
        vectors = 2 if "fp32" in row["kernel"] else 1
        loads, stores = (2, 1) if "forward" in row["kernel"] else (3, 2)
        assert_wide(row, 128, loads * vectors, stores * vectors)


def kernels_of_32_bit_rows():
    return [k._replace(signature=k.signature | {"cu_seqlens": "*i32"}) for k in kernels()[:1]]


def test_offsets_are_64_bits_wide_and_shorter_ones_are_found():
    assert_long_offsets(compile_report("test_scan:kernels"))
    with pytest.raises(AssertionError, match=r"arith\.muli .*xi32>"):
        assert_long_offsets(compile_report("test_scan:kernels_of_32_bit_rows"))


def start_not_reset(cu_seqlens, h0, **k):
    h, final = scan(cu_seqlens=cu_seqlens[[0, -1]], h0=h0[:1], **k)
    return h, final.expand_as(h0)


def carry_dropped_at_a_block_edge(cu_seqlens, h0, **k):
    edges = torch.cat((cu_seqlens, cu_seqlens.new_tensor([32]))).sort().values
    h, final = scan(cu_seqlens=edges, h0=torch.cat((h0[:1], 0 * h0[:1], h0[1:])), **k)
    return h, torch.cat((final[:1], final[2:]))


def decay_of_the_row_before(a, **k):
    return scan(a=a.roll(1, 0), **k)


def decay_gradient_from_the_state_after_the_row(a, **k):
    a = a.clone()
    a.register_hook(lambda gradient: gradient.roll(-1, 0))
    return scan(a=a, **k)


def h0_gradient_without_the_first_decay(a, h0, cu_seqlens, **k):
    h0 = h0.clone()
    h0.register_hook(lambda gradient: gradient / a.detach()[cu_seqlens[:-1]])
    return scan(a=a, h0=h0, cu_seqlens=cu_seqlens, **k)


@pytest.mark.parametrize("fault", [
    start_not_reset, carry_dropped_at_a_block_edge, decay_of_the_row_before,
    decay_gradient_from_the_state_after_the_row, h0_gradient_without_the_first_decay,
])  # fmt: skip
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([40, 9, 4], 4, decay=0.9)
    inputs["a"] -= 0.1 * torch.rand_like(inputs["a"])
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    faulty = evaluate(inputs, torch.float32, function=fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("scan", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


@pytest.mark.parametrize("length", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sweeps_of_figure_3_equal_the_reference(length, dtype):
    inputs = make([length], 3) | {"h0": torch.zeros(1, 3).double()}

    def by_sweeps(a, u, cu_seqlens, h0, backend):
        h = scan_by_sweeps(a, u)
        return h, h[-1:] + 0 * h0

    exact, plain = (evaluate(inputs, d, heads=(1.0, 0.0)) for d in (torch.float64, dtype))
    got = evaluate(inputs, dtype, heads=(1.0, 0.0), function=by_sweeps)
    for results in (got, plain, exact):
        results.pop("dh0")
    assert_close("scan", got, plain, exact, f"{length=}")


@pytest.mark.parametrize("length", [0, 3, 12])
def test_the_sweeps_refuse_other_lengths(length):
    with pytest.raises(ValueError, match=f"u has {length} rows, expected a power of two"):
        scan_by_sweeps(torch.ones(length, 2), torch.ones(length, 2))


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    inputs = {k: v.cpu() for k, v in on_device(make([3], 2)).items()}
    with pytest.raises(ValueError, match="'quick' is unknown; choose from reference, triton, auto"):
        scan(**inputs, backend="quick")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA device, the tensors are on the CPU; ref"):
        scan(**inputs, backend="triton")
    assert choose_backend("triton", "cuda") == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", "cpu") == "triton"
    with pytest.raises(ValueError, match="runs kernels on the CPU, the tensors are on cuda:1"):
        choose_backend("triton", "cuda:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="cannot run: triton is not installed"):
        choose_backend("triton", "cuda")


def test_auto_is_triton_on_cuda_and_else_the_reference(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend("auto", "cuda") == "triton"
    assert choose_backend("auto", "cpu") == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("auto", "cpu") == "reference"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("u", torch.zeros(3), r"u has shape \(3,\), expected \(N, C\)"),
        ("a", torch.zeros(3, 3), r"a has shape \(3, 3\), expected \(3, 2\)"),
        ("u", torch.zeros(3, 2).long(), "u is torch.int64, expected a float"),
        ("a", torch.zeros(3, 2).long(), "a is torch.int64, expected a float"),
        ("a", torch.zeros(3, 2, device="meta"), "a is on meta, u on cpu"),
        ("h0", torch.zeros(2, 2), r"h0 has shape \(2, 2\), expected \(1, 2\)"),
        ("h0", torch.zeros(1, 2).double(), "h0 is torch.float64, too wide for u of torch.float32"),
        ("cu_seqlens", torch.tensor([0, 3]).int(), "cu_seqlens is torch.int32.* expected"),
        ("cu_seqlens", torch.tensor([0, 4]), r"cu_seqlens spans 0\.\.4, expected 0\.\.3"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    inputs = {k: v.cpu() for k, v in on_device(make([3], 2)).items()}
    with pytest.raises(ValueError, match=message):
        scan(**(inputs | {name: wrong}))
