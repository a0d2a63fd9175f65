import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tolerances import assert_close, relative_error

from recblr.ops.cross_entropy import linear_cross_entropy
from recblr.ops.cross_entropy.chunked import rows_at_once
from recblr.ops.cross_entropy.reference import linear_cross_entropy as plain_cross_entropy

NAMES = ("x", "weight", "bias", "by")
ROWS, BY = torch.tensor([1, 2]), torch.tensor(-1.0, dtype=torch.float64)


def make(n, v, d=8, scale=1.0, bias=True, seed=0, shifted=False):
    """Inputs of the loss; of `shifted` its parts: `cells` and `by`."""
    random = torch.Generator().manual_seed(seed)
    inputs = {
        "x": scale * torch.randn(n, d, generator=random, dtype=torch.float64),
        "weight": torch.randn(v, d, generator=random, dtype=torch.float64),
        "targets": torch.randint(v, (n,), generator=random),
        "bias": torch.randn(v, generator=random, dtype=torch.float64) if bias else None,
    }
    if shifted:
        inputs["cells"] = torch.rand(n, v, generator=random).lt(0.3).nonzero(as_tuple=True)
        inputs["by"] = torch.tensor(-2.5, dtype=torch.float64)
    return inputs


def arguments(inputs):
    inputs = dict(inputs)
    if "by" in inputs:
        inputs["shifted"] = (*inputs.pop("cells"), inputs.pop("by"))
    return inputs


def evaluate(inputs, dtype, function=linear_cross_entropy, incoming=1.0, **kwargs):
    """The loss and its gradients by name."""
    given = [name for name in NAMES if inputs.get(name) is not None]
    leaves = {k: inputs[k].to(dtype).detach().requires_grad_() for k in given}
    loss = function(**arguments(inputs | leaves), **kwargs)
    (incoming * loss).backward()
    return {"loss": loss.detach()} | {f"d{k}": v.grad for k, v in leaves.items()}


@given(
    n=st.sampled_from((1, 2, 63, 64, 65, 200)),
    v=st.sampled_from((1, 2, 17, 300)),
    scale=st.sampled_from((0.0, 0.1, 1.0, 30.0, 1e4)),
    bias=st.booleans(),
    chunk_rows=st.sampled_from((7, 64, 256)),
    seed=st.integers(0, 99),
    shifted=st.booleans(),
)
@example(65, 300, 1e4, True, 64, 1, False)
@example(200, 300, 1.0, True, 64, 2, True)
def test_chunks_equal_the_plain_loss_in_float64(n, v, scale, bias, chunk_rows, seed, shifted):
    """Scale 1e4 gives logits of 1e5, far outside exp's range, whose rounding outweighs a shift."""
    shifted = shifted and scale < 1e4
    case = f"{n=} {v=} {scale=} {bias=} {chunk_rows=} {seed=} {shifted=}"
    inputs = make(n, v, scale=scale, bias=bias, seed=seed, shifted=shifted)
    exact = evaluate(inputs, torch.float64, plain_cross_entropy, incoming=3.0)
    plain = evaluate(inputs, torch.float32, plain_cross_entropy, incoming=3.0)
    for dtype in (torch.float32, torch.float64):
        got = evaluate(inputs, dtype, incoming=3.0, chunk_rows=chunk_rows)
        assert_close("cross_entropy", got, plain, exact, f"{dtype} {case}")


def test_float64_gradients_equal_finite_differences():
    inputs = make(5, 7, shifted=True)
    leaves = [inputs[k].requires_grad_() for k in NAMES]

    def loss(*leaf):
        return linear_cross_entropy(**arguments(inputs | dict(zip(NAMES, leaf))), chunk_rows=2)

    assert torch.autograd.gradcheck(loss, leaves)


def test_nan_and_infinity_are_not_hidden():
    inputs = make(5, 7)
    for value in (torch.nan, torch.inf):
        inputs["x"][2, 0] = value
        assert not linear_cross_entropy(**inputs).isfinite()


@pytest.mark.parametrize("shifted", [False, True])
def test_a_batch_without_rows_gives_zero_and_zero_gradients(shifted):
    got = evaluate(make(0, 7, shifted=shifted), torch.float32)
    assert ("dby" in got) is shifted
    assert got.pop("loss") == 0
    for gradient in got.values():
        assert gradient.count_nonzero() == 0


def test_only_wanted_gradients_are_computed(monkeypatch):
    inputs = make(5, 7)
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(a) or mm(*a, **k))
    loss = linear_cross_entropy(**inputs)
    assert not loss.requires_grad and len(products) == 1
    with torch.no_grad():
        linear_cross_entropy(**(inputs | {"x": inputs["x"].requires_grad_()}))
    assert len(products) == 2
    linear_cross_entropy(**inputs).backward()
    assert inputs["x"].grad is not None and inputs["weight"].grad is None
    assert len(products) == 4


def test_one_chunk_of_logits_exists_at_a_time(monkeypatch):
    """All logits would be 4,000,000 numbers; one buffer of 64 rows is used for every chunk."""
    inputs = make(2000, 2000, d=4)
    buffers, mm = {}, torch.mm

    def record(a, b, out=None):
        result = mm(a, b) if out is None else mm(a, b, out=out)
        buffers[result.untyped_storage().data_ptr()] = result.untyped_storage().nbytes() // 8
        return result

    monkeypatch.setattr(torch, "mm", record)
    evaluate(inputs, torch.float64, chunk_rows=64)
    assert max(buffers.values()) == 64 * 2000
    assert sum(size >= 64 * 2000 for size in buffers.values()) == 1


@pytest.mark.parametrize(("device", "items", "rows"), [
    ("cpu", 100, 256), ("cpu", 12101, 64), ("cpu", 18357, 64), ("cpu", 10**7, 64),
    ("cuda", 12101, 5545), ("cuda", 10**8, 1),
])  # fmt: skip
def test_chunks_fit_the_cache_on_the_cpu_and_are_large_elsewhere(device, items, rows):
    assert rows_at_once(items, torch.device(device)) == rows


def test_saved_gradients_survive_a_second_backward():
    inputs = make(9, 7)
    x = inputs["x"].requires_grad_()
    loss = linear_cross_entropy(**inputs)
    (first,) = torch.autograd.grad(2 * loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, x)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("n", "v"), [(300, 200), (2048, 8000)])
def test_bfloat16_loses_no_more_than_its_inputs_rounding(n, v, dtype=torch.bfloat16):
    inputs = make(n, v)
    exact = evaluate(inputs, torch.float64, plain_cross_entropy)
    got = evaluate(inputs, dtype, chunk_rows=64)
    for name in exact:
        assert got[name].dtype == (torch.float32 if name == "loss" else dtype)
        assert relative_error(got[name], exact[name]) < 4 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("shifted", [False, True])
def test_autocast_runs_the_products_in_its_dtype(shifted):
    inputs = make(300, 200, shifted=shifted)
    exact = evaluate(inputs, torch.float64, plain_cross_entropy)
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(inputs, torch.float32, chunk_rows=64)
    for name in exact:
        assert got[name].dtype == torch.float32
        assert 1e-6 < relative_error(got[name], exact[name]) < 0.05, name


def test_slices_of_larger_buffers_are_read_and_left_alone():
    inputs = make(30, 20)
    expected = evaluate(inputs, torch.float64)
    sliced = {k: v.repeat_interleave(2, -1)[..., ::2] if k in NAMES else v
              for k, v in inputs.items()}  # fmt: skip
    got = evaluate(sliced, torch.float64)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("weight", torch.zeros(7, 3), r"weight has shape \(7, 3\), expected \(7, 8\)"),
        ("targets", torch.zeros(4).long(), r"targets has shape \(4,\), expected \(5,\)"),
        ("targets", torch.zeros(5), "targets is torch.float32, expected torch.int64"),
        ("bias", torch.zeros(6), r"bias has shape \(6,\), expected \(7,\)"),
        ("weight", torch.zeros(7, 8).half(), "weight is torch.float16, expected torch.float64"),
        ("weight", torch.zeros(7, 8, device="meta"), "weight is on meta, x on cpu"),
        ("targets", torch.zeros(5, device="meta").long(), "targets is on meta, x on cpu"),
        ("weight", torch.zeros(8), r"x has shape \(5, 8\), weight \(8,\), expected \(N, D\) and"),
        ("weight", torch.zeros(0, 8), r"weight \(0, 8\), expected .* with V of 1 or more"),
        ("x", torch.zeros(5), r"x has shape \(5,\), weight \(7, 8\), expected \(N, D\)"),
        ("x", torch.zeros(5, 8).half(), "x is torch.float16, expected torch.float64, float32 or b"),
        ("x", torch.zeros(5, 8).int(), "x is torch.int32, expected torch.float64, float32 or b"),
        ("shifted", (ROWS, ROWS[:1], BY), r"shifted\[1\] has shape \(1,\), expected \(2,\)"),
        ("shifted", (ROWS, ROWS, BY[None]), r"shifted\[2\] has shape \(1,\), expected \(\)"),
        (
            "shifted",
            (ROWS, ROWS.float(), BY),
            r"shifted\[1\] is torch.float32, expected torch.int64",
        ),
        ("shifted", (ROWS.flip(0), ROWS, BY), r"shifted\[0\] falls"),
        ("shifted", (ROWS - 2, ROWS, BY), r"shifted\[0\] has rows -1\.\."),
        ("shifted", (ROWS + 100, ROWS, BY), r"shifted\[0\] has rows 101\.\."),
        (
            "shifted",
            (ROWS, ROWS, BY.float()),
            r"shifted\[2\] is torch.float32, expected",
        ),
        ("shifted", (ROWS, ROWS, BY.to("meta")), r"shifted\[2\] is on meta, x on cpu"),
    ],
)
def test_a_wrong_argument_is_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(make(5, 7) | {name: wrong}))
