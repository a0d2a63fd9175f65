import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble, store_of

from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.recblr import RecBLR
from recblr.training.objectives import CrossEntropy

V = 25
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return scramble(RecBLR(V, d_model=8, dropout=0.0, scan="reference")).double()


def loss_and_gradients(model, batch):
    loss = CrossEntropy()(model, batch)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return loss, dict(zip((name for name, _ in model.named_parameters()), grads))


def one_batch(store, max_length, target_mode):
    rows = training_rows(store, max_length, target_mode)
    loader = PackedLoader(
        store, rows, 10**6, budget="targets", shuffle=(3, 0), one_target=target_mode == "prefix"
    )
    (batch,) = loader
    return batch


@pytest.mark.parametrize("lengths", [[12, 3, 4, 7, 2, 1, 12], [4, 4, 4], [22, 5]])
def test_all_positions_and_prefix_rows_have_one_loss_and_one_gradient(model, lengths):
    store = store_of(random_sequences(lengths, V), V)
    expected_targets = sum(max(0, length - 1 - 2 * (length >= 3)) for length in lengths)
    positions = one_batch(store, 20, "all_positions")
    prefixes = one_batch(store, 20, "prefix")
    assert positions.n_targets == prefixes.n_targets == expected_targets
    loss, grads = loss_and_gradients(model, positions)
    expected, expected_grads = loss_and_gradients(model, prefixes)
    torch.testing.assert_close(loss, expected, **CLOSE)
    for name, grad in grads.items():
        assert expected_grads[name].any(), name
        torch.testing.assert_close(grad, expected_grads[name], **CLOSE, msg=name)


def test_the_loss_is_the_cross_entropy_over_all_rows_padding_included(model):
    sequences = random_sequences([5, 1, 3], V)
    batch = batch_of(sequences, [4, V, 9])
    logits = model.represent(batch) @ model.embedding.weight.T
    assert logits.shape[1] == V + 1
    torch.testing.assert_close(
        CrossEntropy()(model, batch), F.cross_entropy(logits, batch.targets), **CLOSE
    )
    grad = loss_and_gradients(model, batch)[1]["embedding.weight"]
    assert grad[0].any()  # the padding row is one of the classes


def test_only_positions_with_a_target_count(model):
    sequences = random_sequences([4, 3, 2], V)
    targets = torch.tensor([0, 0, 5, 7, 3, 0, 2, 0, 0])
    batch = batch_of(sequences, targets.tolist())
    logits = (model.encode(batch) @ model.embedding.weight.T)[targets > 0]
    expected = F.cross_entropy(logits, targets[targets > 0])
    torch.testing.assert_close(CrossEntropy()(model, batch), expected, **CLOSE)


def test_an_item_bias_is_added_to_the_logits(model):
    bias = torch.randn(V + 1, dtype=torch.float64)
    model.item_bias = lambda: bias
    batch = batch_of(random_sequences([4, 2], V), [3, 8])
    logits = model.represent(batch) @ model.embedding.weight.T + bias
    torch.testing.assert_close(
        CrossEntropy()(model, batch), F.cross_entropy(logits, batch.targets), **CLOSE
    )


def test_all_positions_is_refused_for_a_model_that_sees_later_items(model):
    model.causal = False
    sequences = random_sequences([3, 2], V)
    with pytest.raises(ValueError, match=r"all_positions.*RecBLR.*target_mode=prefix"):
        CrossEntropy()(model, batch_of(sequences, [1, 2, 3, 4, 5]))
    assert CrossEntropy()(model, batch_of(sequences, [1, 2])).isfinite()
