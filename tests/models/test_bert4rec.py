import pytest
import torch
from batches import batch_of, random_sequences, scramble

from recblr.models.bert4rec import BERT4Rec

V, LONGEST = 30, 20
MASK = V + 1
LENGTHS = [5, 1, 2, 20, 3, 17, 1, 9]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def tiny(**changes):
    """Equal weights on every call, all far from zero."""
    torch.manual_seed(1)
    arguments = {"d_model": 12, "n_layers": 2, "n_heads": 3, "dropout": 0.0} | changes
    return scramble(BERT4Rec(V, LONGEST, **arguments)).double()


def scores(model, sequences):
    return model.represent(batch_of(sequences)) @ model.item_matrix().T + model.item_bias()


def norm(x, layer_norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-12).sqrt() * layer_norm.weight + layer_norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def padded_encode(model, items):
    """items (B, T), 0 on the right -> (B, T, D): the equations on whole tensors, padding masked."""
    x = norm(model.embedding.weight[items] + model.positions.weight[: items.shape[1]], model.norm)
    visible = (items > 0)[:, None]
    for layer in model.layers:
        matrices = zip(layer.qkv_proj.weight.chunk(3), layer.qkv_proj.bias.chunk(3))
        q, k, v = (x @ weight.T + bias for weight, bias in matrices)
        heads = []
        for qh, kh, vh in zip(*(y.chunk(model.n_heads, 2) for y in (q, k, v))):
            scores = qh @ kh.transpose(1, 2) / qh.shape[2] ** 0.5
            heads.append(scores.masked_fill(~visible, -1e4).softmax(2) @ vh)
        y = torch.cat(heads, 2) @ layer.out_proj.weight.T + layer.out_proj.bias
        s = norm(x + y, layer.attention_norm)
        inner = gelu(s @ layer.pffn.inner.weight.T + layer.pffn.inner.bias)
        x = norm(s + inner @ layer.pffn.outer.weight.T + layer.pffn.outer.bias, layer.pffn_norm)
    return norm(gelu(x @ model.head.weight.T + model.head.bias), model.head_norm)


def check_gradients(model, got, expected, without=()):
    weights, parameters = torch.randn_like(got), dict(model.named_parameters())
    for name in without:
        del parameters[name]
    grads = torch.autograd.grad((got * weights).sum(), list(parameters.values()))
    expected = torch.autograd.grad((expected * weights).sum(), list(parameters.values()))
    for name, grad, expected_grad in zip(parameters, grads, expected):
        assert expected_grad.any(), name
        torch.testing.assert_close(grad, expected_grad, **CLOSE, msg=name)


def test_encode_equals_the_equations_on_a_padded_batch():
    model, sequences = tiny(), random_sequences(LENGTHS, V)
    for sequence in sequences[::2]:
        sequence[-1] = MASK
    sequences[3][4] = MASK
    batch = batch_of(sequences)
    items = batch.padded("right")
    expected, got = padded_encode(model, items)[items > 0], model.encode(batch)
    torch.testing.assert_close(got, expected, **CLOSE)
    check_gradients(model, got, expected, without=["bias"])


@pytest.mark.parametrize("usual", [False, True])
def test_a_mask_follows_the_history_and_its_row_is_scored(usual):
    model, sequences = tiny(usual=usual), random_sequences(LENGTHS, V)
    items = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.int64)
    for row, sequence in zip(items, sequences):
        kept = [*sequence, MASK][1 if usual or len(sequence) == LONGEST else 0 :]
        row[: len(kept)] = torch.tensor(kept)
    rows = (items > 0).sum(1) - 1
    expected = padded_encode(model, items)[range(len(rows)), rows]
    expected = expected @ model.embedding.weight[: V + 1].T + model.bias
    got = scores(model, sequences)
    torch.testing.assert_close(got, expected, **CLOSE)
    check_gradients(model, got, expected)


def test_usual_forgets_the_oldest_item_and_only_usual():
    model, usual = tiny(), tiny(usual=True)
    forgets = torch.tensor([False, False, True])  # only a full history, for lack of room
    one, other = ([[item], [item, 9], [item, *range(1, 20)]] for item in (5, 6))
    changed = (scores(model, one) != scores(model, other)).any(1)
    assert torch.equal(changed, ~forgets)
    assert torch.equal(scores(usual, one), scores(usual, other))


def test_usual_shifts_every_position_by_one():
    history = [3, 8, 1, 7]
    torch.testing.assert_close(
        scores(tiny(usual=True), [history]), scores(tiny(), [history[1:]]), **CLOSE
    )
    full = random_sequences([LONGEST], V)  # where the oldest has to go, both do the same
    assert torch.equal(scores(tiny(usual=True), full), scores(tiny(), full))


def test_both_modes_have_the_same_parameters():
    usual = tiny(usual=True)
    usual.load_state_dict(tiny().state_dict())


def test_the_mask_is_no_item():
    model = tiny()
    assert model.mask_id == MASK
    assert torch.equal(model.item_matrix(), model.embedding.weight[:MASK])
    assert model.item_bias() is model.bias
    before = model.represent(batch_of([[4, 5]]))
    with torch.no_grad():
        model.embedding.weight[MASK] += 1
    assert not torch.equal(model.represent(batch_of([[4, 5]])), before)


@pytest.mark.parametrize(
    ("n_items", "max_length", "expected"), [(3416, 200, 339_353), (12101, 50, 894_278)]
)
def test_parameters_are_as_many_as_the_usual_model_has(n_items, max_length, expected):
    assert sum(p.numel() for p in BERT4Rec(n_items, max_length).parameters()) == expected


def test_weights_start_as_usual():
    model = BERT4Rec(2000, 200)
    assert model.embedding.weight[0].any() and model.embedding.weight[2001].any()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("d_model", 0), ("n_layers", 0), ("n_heads", 0), ("n_heads", 5), ("max_length", 0),
        ("dropout", 1.0), ("dropout", -0.1),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}={value!r}"):
        BERT4Rec(**{"n_items": V, "max_length": LONGEST, argument: value})
