"""The paper's padded scan: on the device where there is one, else in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from bd_lru_cases import DEVICE, NAMES, evaluate, make
from tolerances import allowed_error, assert_close, relative_error

from recblr.ops.bd_lru import bd_lru, parallel
from recblr.ops.bd_lru.reference import decays_and_inputs
from recblr.ops.packed import power_of_two
from recblr.ops.scan import scan


def assert_parallel_agrees(inputs, case="", **kwargs):
    exact, plain = (evaluate(inputs, dtype, **kwargs) for dtype in (torch.float64, torch.float32))
    got = evaluate(inputs, torch.float32, parallel.bd_lru, device=DEVICE, **kwargs)
    assert_close("bd_lru", got, plain, exact, case)


def arguments(inputs):
    """What a backend takes, in float32 on the device."""
    u, gates, lambda_, h0, z = (inputs[k].to(DEVICE, torch.float32) for k in NAMES)
    return u, gates, F.softplus(lambda_), inputs["cu_seqlens"].to(DEVICE), h0, z, 0.0


@pytest.mark.parametrize(
    ("longest", "padded"),
    [
        (0, 1),
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 4),
        (5, 8),
        (100, 128),
        (200, 256),
        (256, 256),
        (257, 512),
    ],
)
def test_the_padded_length_is_the_next_power_of_two(longest, padded):
    assert power_of_two(longest) == padded


@pytest.mark.parametrize(
    ("shift", "lambda_at", "eps"),
    [
        (0.0, -3.0, 0.0),
        (0.0, -3.0, 1e-8),
        (0.0, -13.0, 0.0),  # decays of about 1 - 1e-6
        (-20.0, 8.0, 0.0),
        (-100.0, -10.0, 0.0),  # input scales of about 0
        (200.0, 100.0, 0.0),  # decays of exactly 0
    ],
)
def test_parallel_equals_the_float64_reference(shift, lambda_at, eps):
    case = f"{shift=} {lambda_at=} {eps=}"
    inputs = make([3, 0, 17, 1], 3, shift=shift, lambda_at=lambda_at)
    assert_parallel_agrees(inputs, case, eps=eps)


@pytest.mark.parametrize(
    ("lengths", "channels"),
    [
        ([], 4), ([0, 0], 4), ([1], 1), ([1, 1, 1], 2), ([2, 0, 1], 20), ([3], 33),
        ([31, 32], 2), ([33], 2), ([63, 1, 64], 1), ([65, 0, 7], 1), ([200], 1),
        *([([1000, 3, 0, 1024, 1025], 128)] if DEVICE == "cuda" else []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("merge", [True, False])
def test_lengths_around_powers_of_two(lengths, channels, merge):
    assert_parallel_agrees(make(lengths, channels, merge=merge), f"{lengths=} {channels=} {merge=}")


@pytest.mark.parametrize("heads", [(1.0, 0.0), (0.0, 1.0)])
def test_gradients_come_from_the_output_and_from_the_final_state(heads):
    assert_parallel_agrees(make([5, 0, 17, 1], 4), heads=heads)


def test_the_gates_run_on_padded_rows_of_which_a_sequence_fills_the_last(monkeypatch):
    seen = {}

    def gates_spy(u, gates, c, eps):
        seen["gated"] = u.shape, gates.shape
        return decays_and_inputs(u, gates, c, eps)

    def spy(a, v, cu_seqlens, h0, backend):
        seen.update(pad=(a == 1) & (v == 0), cu_seqlens=cu_seqlens.tolist())
        return scan(a, v, cu_seqlens, h0)

    monkeypatch.setattr(parallel, "scan", spy)
    monkeypatch.setattr(parallel, "decays_and_inputs", gates_spy)
    parallel.bd_lru(*arguments(make([1, 0, 3], 2)))
    assert seen["gated"] == ((12, 2), (12, 4))
    assert seen["cu_seqlens"] == [0, 4, 8, 12]
    assert seen["pad"][:, 0].int().tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]


def test_an_empty_sequence_keeps_its_h0_to_the_bit():
    inputs = make([0, 40, 0], 4)
    _, _, _, _, h0, *_ = call = arguments(inputs)
    _, final = parallel.bd_lru(*call)
    assert torch.equal(final[0], h0[0]) and torch.equal(final[2], h0[2])


def test_more_padding_changes_nothing():
    alone, beside = make([3], 4), make([3, 40], 4)
    rows = slice(0, 3)
    for name in ("u", "gates", "z"):
        beside[name][rows] = alone[name]
    beside["h0"][0], beside["lambda_"] = alone["h0"][0], alone["lambda_"]
    y, final = parallel.bd_lru(*arguments(alone))
    padded_y, padded_final = parallel.bd_lru(*arguments(beside))
    torch.testing.assert_close(padded_y[rows], y, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(padded_final[0], final[0], atol=1e-6, rtol=1e-6)


def test_the_lengths_may_come_from_the_host():
    inputs = make([3, 0, 9], 2)
    expected = parallel.bd_lru(*arguments(inputs))
    got = parallel.bd_lru(*arguments(inputs), cu_seqlens_host=inputs["cu_seqlens"])
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_strided_inputs_give_the_same():
    def strided(u, gates, c, cu_seqlens, h0, z, eps):
        u, gates, h0, z = (x.repeat_interleave(2, -1)[:, ::2] for x in (u, gates, h0, z))
        return parallel.bd_lru(u, gates, c, cu_seqlens, h0, z, eps)

    inputs = make([5, 9, 0], 3)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    got = evaluate(inputs, torch.float32, strided, device=DEVICE)
    assert_close("bd_lru", got, plain, exact)


def test_it_is_the_backend_named_parallel():
    inputs = {k: v.to(DEVICE, torch.float32) if k in NAMES else v.to(DEVICE)
              for k, v in make([3, 0, 9], 2).items()}  # fmt: skip
    y, final = bd_lru(**inputs, backend="parallel")
    expected_y, expected_final = bd_lru(**inputs, backend="reference")
    torch.testing.assert_close(y, expected_y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(final, expected_final, atol=1e-5, rtol=1e-5)


def pad_steps_that_forget_h0(a, v, cu_seqlens, h0, backend):
    return scan(a.where((a != 1) | (v != 0), 0), v, cu_seqlens, h0)


def pad_steps_that_feed_the_state(a, v, cu_seqlens, h0, backend):
    return scan(a, v.where((a != 1) | (v != 0), 1e-3), cu_seqlens, h0)


def cut_one_row_early(a, v, cu_seqlens, h0, backend):
    h, final_state = scan(a, v, cu_seqlens, h0)
    return h.roll(1, 0), final_state


@pytest.mark.parametrize(
    "fault", [pad_steps_that_forget_h0, pad_steps_that_feed_the_state, cut_one_row_early]
)
def test_planted_faults_exceed_the_tolerance(fault, monkeypatch):
    inputs = make([20, 9, 4], 4)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    monkeypatch.setattr(parallel, "scan", fault)
    faulty = evaluate(inputs, torch.float32, parallel.bd_lru)
    worst = max(
        relative_error(faulty[k], exact[k]) / allowed_error("bd_lru", plain[k], exact[k])
        for k in exact
    )
    assert worst > 100


def test_tensors_that_triton_does_not_run_on_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    call = [x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments(make([3], 2))]
    with pytest.raises(ValueError, match="needs a CUDA device, the tensors are on the CPU"):
        parallel.bd_lru(*call)
