import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble, store_of
from gradients import assert_same, gradients

from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.blocks import REPEAT_SCALE, RepeatBias
from recblr.models.recblr import RecBLR
from recblr.training.objectives import (
    AHEAD,
    BCE,
    BPR,
    CrossEntropy,
    SampledSoftmax,
    pair_scores,
)

V = 25
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return scramble(RecBLR(V, d_model=8, dropout=0.0, scan="reference")).double()


def one_batch(store, max_length, target_mode):
    rows = training_rows(store, max_length, target_mode)
    loader = PackedLoader(
        store, rows, 10**6, budget="targets", shuffle=(3, 0), one_target=target_mode == "prefix"
    )
    (batch,) = loader
    return batch


def test_all_positions_and_prefix_rows_have_one_loss_and_one_gradient(model):
    """Where a user fills several rows: more in test_contract.py."""
    store = store_of(random_sequences([22, 5], V), V)
    batches = [one_batch(store, 20, mode) for mode in ("all_positions", "prefix")]
    assert [batch.n_targets for batch in batches] == [19 + 2] * 2
    assert_same(*(CrossEntropy()(model, batch) for batch in batches), model)


def test_the_loss_is_the_cross_entropy_over_all_rows_padding_included(model):
    sequences = random_sequences([5, 1, 3], V)
    batch = batch_of(sequences, [4, V, 9])
    logits = model.represent(batch) @ model.embedding.weight.T
    assert logits.shape[1] == V + 1
    torch.testing.assert_close(
        CrossEntropy()(model, batch), F.cross_entropy(logits, batch.targets), **CLOSE
    )
    grad = gradients(CrossEntropy()(model, batch), model)["embedding.weight"]
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


def test_a_repeat_bias_is_added_to_the_logits_of_the_items_up_to_each_target(model):
    model.repeat_bias = RepeatBias().double()
    model.repeat_bias.weight.data.fill_(-0.3)
    sequences = [[3, 7, 3, 1], [2, 9]]
    batch = batch_of(sequences, [7, 3, 0, 5, 0, 2])  # every position
    logits = model.encode(batch) @ model.embedding.weight.T
    met = [{3}, {3, 7}, {3, 7}, {3, 7, 1}, {2}, {2, 9}]
    for row, items in enumerate(met):
        logits[row, list(items)] += REPEAT_SCALE * model.repeat_bias.weight
    rows = batch.targets > 0
    expected = F.cross_entropy(logits[rows], batch.targets[rows])
    assert_same(CrossEntropy()(model, batch), expected, model)
    last = batch_of(sequences, [5, 2])  # a target per sequence
    torch.testing.assert_close(
        CrossEntropy()(model, last), F.cross_entropy(logits[[3, 5]], last.targets), **CLOSE
    )


@pytest.mark.parametrize("extras", ["", "item bias", "repeat bias"])
def test_ahead_weight_is_the_weighted_mean_of_the_cross_entropies_of_what_follows(model, extras):
    sequences = [[3, 7, 3, 1, 4], [2, 9], [5], [6, 8]]
    targets = [7, 3, 1, 4, 7, 9, 2, 8, 0, 1]  # 7 and 2 have been met; one row has none
    batch = batch_of(sequences, targets)
    logits = model.encode(batch) @ model.embedding.weight.T
    if extras == "item bias":
        bias = torch.randn(V + 1, dtype=torch.float64)
        model.item_bias = lambda: bias
        logits = logits + bias
    if extras == "repeat bias":
        model.repeat_bias = RepeatBias().double()
        model.repeat_bias.weight.data.fill_(-0.3)
        rows = [s[: i + 1] for s in sequences for i in range(len(s))]
        for row, items in enumerate(rows):
            logits[row, list(set(items))] += REPEAT_SCALE * model.repeat_bias.weight
    log_p, w, losses, start = logits.log_softmax(1), 0.3, [], 0
    for sequence in sequences:
        stop = start + len(sequence)
        for row in range(start, stop):
            if targets[row]:
                ahead = [t for t in targets[row : min(stop, row + AHEAD)]]
                weights = [w**k * (t > 0) for k, t in enumerate(ahead)]
                terms = [a * -log_p[row, t] for a, t in zip(weights, ahead)]
                losses.append(sum(terms) / sum(weights))
        start = stop
    assert_same(CrossEntropy(ahead_weight=w)(model, batch), sum(losses) / len(losses), model)


def test_ahead_weight_changes_nothing_where_nothing_follows(model):
    at_positions = batch_of([[1, 2], [3]], [0, 4, 5])
    assert not at_positions.one_target_per_sequence
    for batch in (at_positions, batch_of([[1, 2], [3]], [4, 5]), batch_of([[1], [3]], [4, 5])):
        assert_same(
            CrossEntropy(ahead_weight=1.0)(model, batch), CrossEntropy()(model, batch), model
        )


def test_all_positions_is_refused_for_a_model_that_sees_later_items(model):
    model.causal = False
    sequences = random_sequences([3, 2], V)
    with pytest.raises(ValueError, match=r"all_positions.*RecBLR.*target_mode=prefix"):
        CrossEntropy()(model, batch_of(sequences, [1, 2, 3, 4, 5]))
    assert CrossEntropy()(model, batch_of(sequences, [1, 2])).isfinite()


class Fixed:
    """Given representations and item rows: what an objective makes of them."""

    causal = True

    def __init__(self, representation, matrix, bias=None):
        self.representation, self.matrix = representation, matrix
        if bias is not None:
            self.item_bias = lambda: bias

    def represent(self, batch):
        return self.representation

    def encode(self, batch):
        return self.representation

    def item_matrix(self):
        return self.matrix


def fixed(sequences=200, n_items=6, bias=False):
    torch.manual_seed(2)
    x = torch.randn(sequences, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(n_items + 1, 3, dtype=torch.float64, requires_grad=True)
    added = torch.randn(n_items + 1, dtype=torch.float64) if bias else None
    targets = torch.randint(1, n_items + 1, (sequences,))
    return Fixed(x, matrix, added), batch_of([[1]] * sequences, targets.tolist())


@pytest.mark.parametrize("bias", [False, True])
def test_bpr_and_bce_are_what_the_two_scores_give(bias):
    model, batch = fixed(bias=bias)
    for objective in (BPR(), BCE()):
        torch.manual_seed(4)
        loss = objective(model, batch)
        torch.manual_seed(4)
        positive, negative = pair_scores(model, batch)
        if isinstance(objective, BPR):
            expected = -torch.log(torch.sigmoid(positive - negative))
        else:
            expected = -torch.log(torch.sigmoid(positive)) - torch.log(1 - torch.sigmoid(negative))
        torch.testing.assert_close(loss, expected.mean(), **CLOSE)
    scores = model.representation @ model.matrix.T
    scores = scores if not bias else scores + model.item_bias()
    torch.testing.assert_close(positive, scores[torch.arange(200), batch.targets], **CLOSE)


def test_a_negative_is_any_item_but_the_target_evenly():
    n_items, draws = 6, 6000
    x = torch.ones(draws, 1, dtype=torch.float64)
    matrix = torch.arange(n_items + 1, dtype=torch.float64)[:, None]  # the score is the item id
    batch = batch_of([[1]] * draws, [1, 3, n_items] * (draws // 3))
    positive, negative = pair_scores(Fixed(x, matrix), batch)
    assert torch.equal(positive.long(), batch.targets)
    for target in (1, 3, n_items):
        counts = torch.bincount(negative[batch.targets == target].long(), minlength=n_items + 1)
        others = [item for item in range(1, n_items + 1) if item != target]
        assert counts[0] == counts[target] == 0
        assert (counts[others] - draws / 3 / 5).abs().max() < 5 * (draws / 3 * 0.2 * 0.8) ** 0.5


def test_one_item_leaves_no_negative():
    model, batch = fixed(n_items=1)
    with pytest.raises(ValueError, match="2 items"):
        BPR()(model, batch)


@pytest.mark.parametrize("objective", [BPR(), BCE(), SampledSoftmax(4)])
def test_the_generator_fixes_what_is_drawn(objective):
    model, batch = fixed()
    torch.manual_seed(1)
    first = objective(model, batch)
    assert objective(model, batch) != first
    torch.manual_seed(1)
    assert objective(model, batch) == first


@pytest.mark.parametrize("bias", [False, True])
def test_sampled_softmax_estimates_the_full_one_without_bias(bias):
    # exp(loss) = 1 + (others' sum) / exp(s+): its mean over draws is the full softmax's.
    model, batch = fixed(sequences=1, bias=bias)
    scores = model.representation @ model.matrix[1:].T
    scores = scores + model.item_bias()[1:] if bias else scores
    full = F.cross_entropy(scores, batch.targets - 1).exp()
    objective = SampledSoftmax(5)
    with torch.no_grad():
        drawn = torch.stack([objective(model, batch).exp() for _ in range(4000)])
    assert (drawn.mean() - full).abs() < 4 * drawn.std() / 4000**0.5
    assert drawn.std() > 0


def test_sampled_softmax_with_many_draws_is_the_softmax_over_the_items():
    model, batch = fixed()
    expected = F.cross_entropy(model.representation @ model.matrix[1:].T, batch.targets - 1)
    got = SampledSoftmax(100_000)(model, batch)
    torch.testing.assert_close(got, expected, rtol=5e-3, atol=0)


def test_sampled_softmax_needs_a_draw():
    with pytest.raises(ValueError, match="n_negatives=0"):
        SampledSoftmax(0)
