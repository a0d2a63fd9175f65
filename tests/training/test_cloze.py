import pytest
import torch
import torch.nn.functional as F
from batches import batch_of, random_sequences, scramble, store_of

from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.bert4rec import BERT4Rec
from recblr.models.sasrec import SASRec
from recblr.training.cloze import Cloze

V, LONGEST = 30, 10
MASK = V + 1
CLOSE = {"rtol": 1e-10, "atol": 1e-13}
MODES = pytest.mark.parametrize("usual", [False, True])


@pytest.fixture
def model():
    torch.manual_seed(1)
    return scramble(BERT4Rec(V, LONGEST, d_model=8, dropout=0.0)).double()


def one_batch(sequences, target_mode):
    rows = training_rows(store_of(sequences, V), LONGEST, target_mode)
    prefix = target_mode == "prefix"
    (batch,) = PackedLoader(
        store_of(sequences, V), rows, 10**6, budget="targets", one_target=prefix
    )
    return batch


def rows_of(batch, values):
    return [part.tolist() for part in values.split(batch.lengths.tolist())]


def hide(batch, seed=0, **arguments):
    """The masked batch, and its hidden and its scored places per row."""
    torch.manual_seed(seed)
    hidden = Cloze(**arguments).hide(batch, MASK, LONGEST)
    places = [
        [[t for t, value in enumerate(row) if value] for row in rows_of(hidden, values)]
        for values in ((hidden.items == MASK).int(), hidden.targets)
    ]
    return hidden, *places


def restored(hidden):
    """The sequences with what the masks hide."""
    items = torch.where(hidden.items == MASK, hidden.targets, hidden.items)
    return rows_of(hidden, items)


@pytest.mark.parametrize("target_mode", ["all_positions", "prefix"])
def test_a_sequence_is_the_inputs_and_the_event_after_them(target_mode):
    sequences = random_sequences([3, 6, 12, 13, 20], V)  # the last two events are no training
    batch = one_batch(sequences, target_mode)
    hidden, *_ = hide(batch)
    got = restored(hidden)
    if target_mode == "prefix":
        parts = [s[:stop] for s in sequences for stop in range(2, len(s) - 1)]
    else:
        parts = [s[:-2] for s in sequences[1:-1]]
        parts += [sequences[-1][:stop] for stop in (11, 16, 18)]  # windows
    assert sorted(got) == sorted(part[-LONGEST:] for part in parts)


@pytest.mark.parametrize("length", [5, 12, 13, 40])
def test_an_event_is_hidden_in_the_window_whose_target_it_is(length):
    store = store_of([list(range(1, length + 1))])
    rows = training_rows(store, 10, "all_positions")
    (batch,) = PackedLoader(store, rows, 10**6, budget="targets", one_target=False)
    hidden = Cloze(mask_ratio=1.0, last_ratio=0.0).hide(batch, length + 1, 10)
    scored = hidden.targets.bincount(minlength=length + 1)[1:].tolist()  # by event of the user
    first = int(length - 2 <= 10)  # there is room for the very first
    assert scored == [first, *[1] * (length - 3), 0, 0]  # the last two are for evaluation


def test_both_ways_to_give_targets_are_read():
    sequences = [[4], [5, 6], [7]]
    expected = [[4, 11], [5, 6, 13], [7, 14]]
    assert restored(hide(batch_of(sequences, [11, 13, 14]))[0]) == expected
    assert restored(hide(batch_of(sequences, [11, 12, 13, 14]))[0]) == expected
    assert restored(hide(batch_of([[4], [7]], [11, 14]))[0]) == [[4, 11], [7, 14]]


def test_every_sequence_hides_something_and_all_that_is_hidden_is_scored():
    batch = batch_of(random_sequences([1, 2, 9, 10] * 50, V), [3] * 200)
    hidden, masked, scored = hide(batch, mask_ratio=0.1)
    assert masked == scored
    assert all(masked)
    kept = hidden.items != MASK
    assert not hidden.targets[kept].any()
    assert hidden.targets[~kept].all()
    # Without one draw below the ratio, each event of a pair is the one as often as the other.
    _, masked, _ = hide(batch_of([[1]] * 4000, [2] * 4000), mask_ratio=0.0, last_ratio=0.0)
    assert all(len(row) == 1 for row in masked)
    assert sum(row == [0] for row in masked) == pytest.approx(2000, abs=130)


def test_events_are_hidden_with_their_probability():
    batch = batch_of(random_sequences([9] * 3000, V), [3] * 3000)
    _, masked, _ = hide(batch, mask_ratio=0.3, last_ratio=0.0)
    counts = torch.tensor([sum(t in row for row in masked) for t in range(10)])
    expected = 0.3 + 0.7**10 / 10  # and one of those that would hide none
    assert counts.float().mean().item() / 3000 == pytest.approx(expected, abs=0.01)
    assert (counts / 3000 - expected).abs().max() < 0.04


def test_a_share_of_the_rows_hides_its_last_event_alone():
    batch = batch_of(random_sequences([9] * 3000, V), [3] * 3000)
    _, masked, _ = hide(batch, mask_ratio=1.0, last_ratio=0.25)
    assert {tuple(row) for row in masked} == {(9,), tuple(range(10))}
    assert sum(row == [9] for row in masked) == pytest.approx(750, abs=100)
    _, masked, _ = hide(batch, last_ratio=1.0)
    assert all(row == [9] for row in masked)


def test_a_hidden_item_leaves_no_trace_but_its_target():
    sequences, targets = random_sequences([5, 1, 10, 7], V), [3, 4, 5, 6]
    for usual in (False, True):
        settings = {"seed": 2, "mask_ratio": 0.5, "last_ratio": 0.0, "usual": usual}
        before, _, scored = hide(batch_of(sequences, targets), **settings)
        for row, places in enumerate(scored):
            for place in places:
                original = before.targets[before.cu_seqlens[row] + place].item()
                changed = [list(s) for s in sequences]
                changed_targets = list(targets)
                lost = not usual and len(sequences[row]) == LONGEST
                if place + lost < len(sequences[row]):
                    changed[row][place + lost] = original % V + 1
                else:
                    changed_targets[row] = original % V + 1
                after, *_ = hide(batch_of(changed, changed_targets), **settings)
                assert torch.equal(after.items, before.items)
                differs = (after.targets != before.targets).nonzero().flatten()
                assert differs.tolist() == [before.cu_seqlens[row] + place]
        assert sum(map(len, scored)) > 5


@MODES
def test_the_loss_is_the_mean_cross_entropy_of_what_is_scored(model, usual):
    batch = batch_of(random_sequences([5, 1, 10, 7, 9], V), [3, 4, 5, 6, 7])
    hidden, _, scored = hide(batch, 4, mask_ratio=0.4, usual=usual)
    assert sum(map(len, scored)) > 3
    losses = []
    for row, places in zip(rows_of(hidden, hidden.items), scored):
        encoded = model.encode(batch_of([row]))
        logits = encoded @ model.embedding.weight[: V + 1].T + model.bias
        targets = hidden.targets.split(hidden.lengths.tolist())[len(losses)]
        losses.append(F.cross_entropy(logits[places], targets[places], reduction="sum"))
    torch.manual_seed(4)
    got = Cloze(mask_ratio=0.4, usual=usual)(model, batch)
    torch.testing.assert_close(got, sum(losses) / sum(map(len, scored)), **CLOSE)


def test_all_that_is_scored_has_the_same_weight_in_both_target_modes(model):
    """Last events alone, so nothing is left to chance: a prefix row is a row of its own."""
    sequences = random_sequences([4, 8, 5], V)
    prefixes = one_batch(sequences, "prefix")
    parts = [s[:stop] for s in sequences for stop in range(1, len(s) - 2)]
    targets = [s[stop] for s in sequences for stop in range(1, len(s) - 2)]
    cloze = Cloze(last_ratio=1.0)
    expected = F.cross_entropy(
        model.represent(batch_of(parts)) @ model.item_matrix().T + model.bias, torch.tensor(targets)
    )
    torch.testing.assert_close(cloze(model, prefixes), expected, **CLOSE)


def test_masks_depend_on_torchs_seed_alone(model):
    batch = batch_of(random_sequences([9] * 20, V), [3] * 20)
    for usual in (False, True):
        cloze = Cloze(usual=usual)
        losses = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            losses.append(cloze(model, batch).item())
        assert losses[0] == losses[2] != losses[1]


def seeds(batch, last: bool, **arguments):
    """Seeds whose draw does, or does not, hide last events alone."""
    for seed in range(60):
        torch.manual_seed(seed)
        if bool(torch.rand(()) < 0.5) is last:
            yield hide(batch, seed, usual=True, **arguments)


def test_usual_leaves_out_the_event_after_the_row():
    sequences = random_sequences([6, 1, 9], V)
    batch = batch_of(sequences, [3, 4, 5])
    for _, masked, _ in seeds(batch, last=True):
        assert masked == [[5], [0], [8]]
    for hidden, masked, _ in seeds(batch, last=False):
        assert hidden.lengths.tolist() == [6, 1, 9]
        for row, places, got in zip(sequences, masked, rows_of(hidden, hidden.items)):
            assert got == [MASK if t in places else item for t, item in enumerate(row)]


def test_usual_decides_for_the_whole_batch_at_once():
    batch = batch_of(random_sequences([9] * 30, V), [3] * 30)
    shares = []
    for seed in range(200):
        _, masked, _ = hide(batch, seed, usual=True)
        shares.append(sum(row == [8] for row in masked) / 30)
    assert sum(share == 1 for share in shares) == pytest.approx(100, abs=25)
    assert max(share for share in shares if share < 1) < 0.5


def test_usual_scores_only_the_newest_of_what_it_hides():
    batch = batch_of(random_sequences([9] * 30, V), [3] * 30)
    limit = int(0.4 * LONGEST)
    more = 0
    for _, masked, scored in seeds(batch, last=False, mask_ratio=0.4):
        for hidden_places, scored_places in zip(masked, scored):
            assert scored_places == [t for t in hidden_places[-limit:] if t > 0]
            more += len(hidden_places) > limit
    assert more > 50


def test_usual_never_scores_the_oldest_event_and_may_hide_none():
    batch = batch_of(random_sequences([1, 4] * 20, V), [3] * 40)
    nothing = oldest = 0
    for last in (False, True):
        for _, masked, scored in seeds(batch, last):
            assert not any(0 in row for row in scored)
            nothing += sum(row == [] for row in masked)
            oldest += sum(0 in row for row in masked)
    assert nothing > 50 and oldest > 50


def test_a_batch_that_scores_nothing_has_a_loss_of_zero_and_gradients(model):
    batch = batch_of([[4], [5]], [3, 4])  # usual: index 0 is never scored
    loss = Cloze(usual=True)(model, batch)
    assert loss == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_a_model_without_a_mask_token_is_refused():
    model = SASRec(V, LONGEST)
    with pytest.raises(ValueError, match=r"objective=cloze: SASRec has no mask token"):
        Cloze()(model, batch_of([[1, 2]], [3]))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("mask_ratio", -0.1), ("mask_ratio", 1.1), ("last_ratio", -1.0), ("last_ratio", 2.0)],
)
def test_a_wrong_ratio_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"objective\.{argument}={value}"):
        Cloze(**{argument: value})


def test_usual_refuses_a_ratio_that_scores_nothing():
    with pytest.raises(ValueError, match=r"mask_ratio=0.05: .*max_length=10"):
        hide(batch_of([[1, 2]], [3]), mask_ratio=0.05, usual=True)
