import pytest
import torch
from batches import batch_of, random_sequences, scramble

from recblr.models.sasrec import SASRec

V, LONGEST = 30, 40
LENGTHS = [5, 1, 2, 40, 3, 17, 1, 9]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def tiny(**changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 12, "n_layers": 2, "n_heads": 3, "dropout": 0.0} | changes
    return scramble(SASRec(V, LONGEST, **arguments)).double()


def norm(x, layer_norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-12).sqrt() * layer_norm.weight + layer_norm.bias


def padded_encode(model, items):
    """items (B, T), 0 on the right -> (B, T, D): the equations on whole tensors, padding masked."""
    width = items.shape[1]
    x = norm(model.embedding.weight[items] + model.positions.weight[:width], model.norm)
    visible = (items > 0)[:, None] & torch.ones(width, width, dtype=torch.bool).tril()
    for layer in model.layers:
        matrices = zip(layer.qkv_proj.weight.chunk(3), layer.qkv_proj.bias.chunk(3))
        q, k, v = (x @ weight.T + bias for weight, bias in matrices)
        heads = []
        for qh, kh, vh in zip(*(y.chunk(model.n_heads, 2) for y in (q, k, v))):
            scores = qh @ kh.transpose(1, 2) / qh.shape[2] ** 0.5
            heads.append(scores.masked_fill(~visible, -1e4).softmax(2) @ vh)
        y = torch.cat(heads, 2) @ layer.out_proj.weight.T + layer.out_proj.bias
        s = norm(x + y, layer.attention_norm)
        inner = s @ layer.pffn.inner.weight.T + layer.pffn.inner.bias
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        y = inner @ layer.pffn.outer.weight.T + layer.pffn.outer.bias
        x = norm(s + y, layer.pffn_norm)
    return x


@pytest.mark.parametrize("what", ["encode", "represent"])
@pytest.mark.parametrize("changes", [{}, {"n_heads": 1, "n_layers": 1}])
def test_packed_equals_the_equations_on_a_padded_batch(what, changes):
    model, batch = tiny(**changes), batch_of(random_sequences(LENGTHS, V))
    items = batch.padded("right")
    expected = padded_encode(model, items)[items > 0]
    if what == "represent":
        expected = expected[batch.last]
    got = getattr(model, what)(batch)
    torch.testing.assert_close(got, expected, **CLOSE)

    weights, parameters = torch.randn_like(got), dict(model.named_parameters())
    grads = torch.autograd.grad((got * weights).sum(), list(parameters.values()))
    expected = torch.autograd.grad((expected * weights).sum(), list(parameters.values()))
    for name, grad, expected_grad in zip(parameters, grads, expected):
        assert expected_grad.any(), name
        torch.testing.assert_close(grad, expected_grad, **CLOSE, msg=name)


def test_positions_count_from_the_oldest_item():
    model = tiny()
    with torch.no_grad():
        model.positions.weight[5] += 1
    changed = (model.encode(batch_of([[1, 2, 3, 4, 5, 6], [7, 8]])) != tiny().encode(
        batch_of([[1, 2, 3, 4, 5, 6], [7, 8]])
    )).any(1)  # fmt: skip
    assert changed.tolist() == [False] * 5 + [True] + [False] * 2


def test_the_item_matrix_is_the_embedding_without_a_bias():
    model = tiny()
    assert model.item_matrix() is model.embedding.weight
    assert not hasattr(model, "item_bias")


def test_usual_changes_nothing_because_the_usual_implementation_is_this_function():
    batch = batch_of(random_sequences(LENGTHS, V))
    assert torch.equal(tiny(usual=True).encode(batch), tiny().encode(batch))


@pytest.mark.parametrize(
    ("n_items", "max_length", "expected"), [(3416, 200, 331_584), (12101, 50, 877_824)]
)
def test_parameters_are_as_many_as_the_usual_model_has(n_items, max_length, expected):
    assert sum(p.numel() for p in SASRec(n_items, max_length).parameters()) == expected


def test_weights_start_as_usual():
    model = SASRec(2000, 200)
    assert model.embedding.weight[0].any()  # the padding row is a row like others
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
    first, second = model.layers
    assert not torch.equal(first.qkv_proj.weight, second.qkv_proj.weight)


@pytest.mark.parametrize("what", ["encode", "represent"])
def test_dropout_also_acts_on_the_attention_weights(what, monkeypatch):
    model, batch = tiny(dropout=0.5), batch_of(random_sequences(LENGTHS, V))
    for module in model.modules():
        if hasattr(module, "dropout"):  # all others off
            monkeypatch.setattr(module.dropout, "forward", lambda x: x)
    one, other = (getattr(model, what)(batch) for _ in range(2))
    moved = (one != other).any(1)
    assert moved.sum() > len(moved) / 2
    model.eval()
    expected = getattr(tiny(), what)(batch)
    torch.testing.assert_close(getattr(model, what)(batch), expected, **CLOSE)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("d_model", 0), ("n_layers", 0), ("n_heads", 0), ("n_heads", 5), ("max_length", 0),
        ("dropout", 1.0), ("dropout", -0.1),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        SASRec(**{"n_items": V, "max_length": LONGEST, argument: value})
