"""The Triton kernel: on the device where there is one, else in Triton's interpreter.

The interpreter takes about 0.1 s for a block, so cases are few and short there. Neither
hypothesis nor numba is needed: a GPU machine may lack them.
"""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from aot import Kernel, assert_fits, assert_long_offsets, assert_wide, compile_report
from bd_lru_cases import DEVICE, NAMES, evaluate, make
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.bd_lru import fused


def run(inputs, function=fused.bd_lru, **options):
    """As `evaluate`, of the kernel in float32 where it runs."""

    def chosen(*arguments):
        return function(*arguments, **options)

    heads, eps = inputs.get("heads", (1.0, 1.0)), inputs.get("eps", 0.0)
    return evaluate(inputs, torch.float32, chosen, heads, DEVICE, eps)


def references(inputs):
    """The reference in float64 and in float32."""
    heads, eps = inputs.get("heads", (1.0, 1.0)), inputs.get("eps", 0.0)
    return tuple(
        evaluate(inputs, dtype, heads=heads, eps=eps) for dtype in (torch.float64, torch.float32)
    )


def assert_equals_reference(inputs, **options):
    exact, plain = references(inputs)
    assert_close("bd_lru", run(inputs, **options), plain, exact, str(options))


def assert_same(got, expected):
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


# lengths, channels, shift of the recurrence gates, Lambda, merge, eps: all values, most pairs.
CASES = [
    ([0, 1, 2, 3, 15], 1, 0.0, -3.0, True, 0.0),
    ([16, 17, 0], 20, -100.0, -10.0, False, 1e-8),
    ([63, 1], 16, 200.0, 100.0, True, 1e-8),
    ([64, 0, 2], 33, -20.0, -13.0, True, 0.0),  # decays about 1 - 1e-10
    ([65, 3], 20, 0.0, -13.0, False, 0.0),  # decays about 1 - 1e-6
    ([2, 17, 15], 33, 50.0, 8.0, False, 0.0),
    ([31, 0], 20, -100.0, 100.0, True, 0.0),
    ([33], 16, 0.0, 0.0, True, 1e-8),
    ([1, 16], 1, -50.0, 8.0, True, 0.0),
    ([0, 0], 16, 0.0, 0.0, True, 0.0),
    ([], 16, 0.0, 0.0, False, 0.0),
]
LARGE_CASES = [
    ([1025, 200, 0, 7, 64], 128, 0.0, -3.0, True, 0.0),
    ([1025], 128, 0.0, -13.0, True, 0.0),
    ([k % 4 for k in range(300)], 33, -5.0, 0.0, False, 1e-8),
]


@pytest.mark.parametrize(
    ("lengths", "channels", "shift", "lambda_at", "merge", "eps"),
    CASES + LARGE_CASES * (DEVICE == "cuda"),
)
def test_equals_the_float64_reference(lengths, channels, shift, lambda_at, merge, eps):
    inputs = make(lengths, channels, shift=shift, lambda_at=lambda_at, merge=merge)
    assert_equals_reference(inputs | {"eps": eps})


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("segment_rows", [0, 16])
def test_gradients_come_from_the_output_and_from_the_final_state(heads, segment_rows):
    inputs = make([2, 0, 18], 20) | {"heads": heads}
    assert_equals_reference(inputs, segment_rows=segment_rows)


@pytest.mark.parametrize(
    ("lengths", "channels", "segment_rows", "merge"),
    [([40, 0, 17, 3], 20, 16, True), ([0, 9, 1, 0], 33, 4, False)],
)
def test_sequences_cut_into_segments_equal_the_reference(lengths, channels, segment_rows, merge):
    inputs = make(lengths, channels, merge=merge, lambda_at=-5.0)
    exact, plain = references(inputs)
    got = run(inputs, segment_rows=segment_rows)
    assert_close("bd_lru", got, plain, exact)
    host = run(inputs, segment_rows=segment_rows, cu_seqlens_host=inputs["cu_seqlens"])
    assert_same(host, got)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_over_many_segments_equals_a_loop(reverse):
    pieces, channels = [35, 1, 70, 2], 20  # 32 segments to a step
    first = torch.tensor([0, *pieces]).cumsum(0)
    decays, ends = torch.rand(sum(pieces), channels), torch.randn(sum(pieces), channels)
    outer = torch.randn(len(pieces), channels)
    inner, expected = torch.empty_like(ends), torch.empty_like(ends)
    arguments = [x.to(DEVICE) for x in (decays, ends, first, outer, inner)]
    fused.launch(fused.carry_kernel, len(pieces), *arguments, channels, REVERSE=reverse)
    for b, (start, stop) in enumerate(pairwise(first.tolist())):
        carry = outer[b]
        for k in reversed(range(start, stop)) if reverse else range(start, stop):
            expected[k] = carry
            carry = decays[k] * carry + ends[k]
    torch.testing.assert_close(arguments[-1].cpu(), expected, rtol=1e-5, atol=1e-5)


def test_slow_decays_reach_across_segments():
    assert_equals_reference(make([40], 16, lambda_at=-13.0), segment_rows=16)


def test_a_host_copy_spares_short_sequences_the_cut():
    inputs = make([9, 8], 4)
    got = run(inputs, segment_rows=16, cu_seqlens_host=inputs["cu_seqlens"])
    assert_same(got, run(inputs, segment_rows=0))


@pytest.mark.parametrize("rows", [1, 7, 16])
@pytest.mark.parametrize("lengths", [[5], [0, 16, 0, 17, 1, 0], [40, 3, 64], [0, 0]])
def test_the_cut_covers_each_sequence_in_order(lengths, rows):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    bounds, begins, first = (x.tolist() for x in fused.cut(cu_seqlens, sum(lengths), rows))
    wanted = [0]
    for start, stop in pairwise(cu_seqlens.tolist()):
        wanted += [min(start + done, stop) for done in range(rows, stop - start, rows)] + [stop]
    assert bounds[: len(wanted)] == wanted
    assert set(bounds[len(wanted) :]) <= {sum(lengths)}
    assert [bounds[k] for k in first] == cu_seqlens.tolist()
    assert begins == [k in first or k > first[-1] for k in range(len(bounds))]


def test_sequences_are_cut_only_where_they_leave_the_device_idle(monkeypatch):
    monkeypatch.setattr(fused, "multiprocessors", lambda device: 132)
    gpu = torch.device("cuda")
    assert fused.rows_to_cut(2048 * 200, 128, 2048, gpu) == 0
    assert fused.rows_to_cut(100_000, 128, 1, gpu) == 512
    assert fused.rows_to_cut(16 * 1000, 64, 16, gpu) == 128
    assert fused.rows_to_cut(100, 64, 1, gpu) == 0
    assert fused.rows_to_cut(100_000, 128, 1, torch.device("cpu")) == 0


@pytest.mark.skipif(DEVICE == "cpu", reason="the rule for cutting needs a CUDA device")
def test_a_long_sequence_is_cut_on_the_device():
    inputs = make([3000, 10], 33, lambda_at=-8.0)
    assert fused.rows_to_cut(3010, 33, 2, torch.device("cuda")) == 128
    assert_equals_reference(inputs)


def test_packed_equals_one_by_one_bit_for_bit():
    lengths = [3, 0, 18, 1]
    inputs = make(lengths, 20)
    together = run(inputs)
    bounds = inputs["cu_seqlens"].tolist()
    for b, (start, stop) in enumerate(pairwise(bounds)):
        alone = {k: inputs[k][start:stop] for k in ("u", "gates", "z")}
        alone |= {"lambda_": inputs["lambda_"], "h0": inputs["h0"][b : b + 1]}
        alone = run(alone | {"cu_seqlens": torch.tensor([0, stop - start])})
        assert torch.equal(alone["y"], together["y"][start:stop])
        assert torch.equal(alone["final"][0], together["final"][b])


def test_without_gradients_the_outputs_are_the_same():
    inputs = make([18, 1], 20)
    with_gradients = run(inputs)
    u, gates, lambda_, h0, z = (inputs[k].to(DEVICE, torch.float32) for k in NAMES)
    y, final = fused.bd_lru(
        u, gates, F.softplus(lambda_), inputs["cu_seqlens"].to(DEVICE), h0, z, 0.0
    )
    assert not y.requires_grad
    assert_same(
        {"y": y.cpu(), "final": final.cpu()}, {k: with_gradients[k] for k in ("y", "final")}
    )


def test_slices_of_larger_buffers_give_the_same():
    def strided(*arguments):
        return fused.bd_lru(
            *(x.repeat_interleave(2, -1)[..., ::2] if isinstance(x, torch.Tensor) else x
              for x in arguments)
        )  # fmt: skip

    inputs = make([5, 17, 0], 20)
    assert_same(run(inputs, strided), run(inputs))


def test_bfloat16_rows_lose_only_the_rounding_of_what_is_stored():
    """Half a unit is 2^-9 of a value: once in y, and for gradients in dy and in the result."""

    def half(u, gates, c, cu_seqlens, h0, z, eps):
        u, gates, z = (x.bfloat16() for x in (u, gates, z))
        return fused.bd_lru(u, gates, c, cu_seqlens, h0, z, eps)

    inputs = make([20, 3], 20)
    inputs |= {k: inputs[k].bfloat16().double() for k in ("u", "gates", "z")}
    exact, got = references(inputs)[0], run(inputs, half)
    assert got["y"].dtype == torch.bfloat16 and got["final"].dtype == torch.float32
    assert relative_error(got["y"], exact["y"]) < 2**-8
    assert relative_error(got["final"], exact["final"]) < 1e-6
    for name in ("du", "dgates", "dlambda_", "dh0", "dz"):
        assert relative_error(got[name], exact[name]) < 2**-7, name


def start_not_reset(u, gates, c, cu_seqlens, h0, z, eps):
    y, final = fused.bd_lru(u, gates, c, cu_seqlens[[0, -1]], h0[:1], z, eps)
    return y, final.expand_as(h0)


def h0_gradient_lost(u, gates, c, cu_seqlens, h0, z, eps):
    return fused.bd_lru(u, gates, c, cu_seqlens, h0.detach() + 0 * h0, z, eps)


def carry_dropped_at_a_block_edge(u, gates, c, cu_seqlens, h0, z, eps):
    edges = torch.cat((cu_seqlens, cu_seqlens.new_tensor([16]))).sort().values
    keep = torch.cat((h0[:1], 0 * h0[:1], h0[1:]))
    y, final = fused.bd_lru(u, gates, c, edges, keep, z, eps)
    return y, torch.cat((final[:1], final[2:]))


def gate_shifted_by_one(u, gates, c, cu_seqlens, h0, z, eps):
    return fused.bd_lru(u, gates.roll(1, 0), c, cu_seqlens, h0, z, eps)


def segment_scan_skipped(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        launch = fused.launch

        def faulty(kernel, count, *rest, **constants):
            if kernel is fused.carry_kernel:
                rest[4].zero_()
            else:
                launch(kernel, count, *rest, **constants)

        patch.setattr(fused, "launch", faulty)
        return fused.bd_lru(*arguments, segment_rows=16)


@pytest.mark.parametrize(
    "fault",
    [
        start_not_reset,
        h0_gradient_lost,
        carry_dropped_at_a_block_edge,
        gate_shifted_by_one,
        segment_scan_skipped,
    ],
)
def test_planted_faults_exceed_the_tolerance(fault):
    inputs = make([20, 9], 4)
    exact, plain = references(inputs)
    faulty = run(inputs, fault)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("bd_lru", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


def kernels():
    """For tests/ops/aot.py: every kernel with the types of a real launch."""
    pointers = dict.fromkeys(("u", "gates", "z", "y", "dy", "du", "dgates", "dz"), "*fp32")
    half = dict.fromkeys(pointers, "*bf16")
    states = dict.fromkeys(
        ("c", "h0", "final", "states", "dfinal", "dc", "dh0", "decays", "ends", "outer", "inner"),
        "*fp32",
    )
    common = {"bounds": "*i64", "first": "*i64", "begins": "*i8", "eps": "fp32", "C": "i32"}
    forward, backward = fused.forward_kernel, fused.backward_kernel
    summary, carry = fused.summary_kernel, fused.carry_kernel
    both = (True, False)
    listed = [(f"forward{' merge' * m}{' keep' * k}", forward, pointers, {"MERGE": m, "KEEP": k})
              for m in both for k in both]  # fmt: skip
    listed += [(f"backward{' merge' * m}", backward, pointers, {"MERGE": m}) for m in both]
    for r in both:
        listed += [(f"summary{' reverse' * r}{' merge' * m}", summary, pointers,
                    {"REVERSE": r, "MERGE": m}) for m in both]  # fmt: skip
        listed.append((f"carry{' reverse' * r}", carry, pointers, {"REVERSE": r}))
    listed += [
        ("forward bf16 merge keep", forward, half, {"MERGE": True, "KEEP": True}),
        ("backward bf16 merge", backward, half, {"MERGE": True}),
    ]
    rows = []
    for name, kernel, types, constants in listed:
        types = {k: v for k, v in (types | states | common).items() if k in kernel.arg_names}
        rows.append(Kernel(name, kernel, types, constants))
    return rows


# Width of an access to 4 elements, and the tensors of rows that a kernel reads and writes. Forward
# summaries read no z, whether merged or not.
ACCESSES = {
    "forward": (128, 3, 1), "forward keep": (128, 3, 1), "forward merge": (128, 4, 1),
    "forward merge keep": (128, 4, 1), "forward bf16 merge keep": (64, 4, 1),
    "backward": (128, 4, 3), "backward merge": (128, 5, 4), "backward bf16 merge": (64, 5, 4),
    "summary": (128, 3, 0), "summary merge": (128, 3, 0),
    "summary reverse": (128, 2, 0), "summary reverse merge": (128, 3, 0),
    "carry": (128, 2, 1), "carry reverse": (128, 2, 1),
}  # fmt: skip


def test_compiled_for_gpus_nothing_spills_and_four_programs_fit():
    rows = compile_report("test_fused:kernels")
    assert {(row["kernel"], row["sm"]) for row in rows} == {
        (kernel, sm) for kernel in ACCESSES for sm in (80, 90)
    }
    assert_fits(rows, registers=128, programs=4)


def test_compiled_for_gpus_offsets_are_64_bits_wide():
    assert_long_offsets(compile_report("test_fused:kernels"))


def test_compiled_for_gpus_rows_move_128_bits_at_a_time():
    for row in compile_report("test_fused:kernels"):
        assert_wide(row, *ACCESSES[row["kernel"]])
