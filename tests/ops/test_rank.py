import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recblr.ops.rank import NEVER, count_ranks


def brute_force(scores, targets, seen=None, cu_seen=None):
    """Counts from the full matrix (B, V+1), user by user and item by item."""
    higher, equal = [], []
    for user, target in enumerate(targets.tolist()):
        hidden = set() if seen is None else set(seen[cu_seen[user] : cu_seen[user + 1]].tolist())
        if target in hidden:
            higher.append(NEVER)
            equal.append(0)
            continue
        rivals = [k for k in range(1, scores.shape[1]) if k != target and k not in hidden]
        higher.append(sum(bool(scores[user, k] > scores[user, target]) for k in rivals))
        equal.append(sum(bool(scores[user, k] == scores[user, target]) for k in rivals))
    return higher, equal


def counts(scores, targets, block_items=8192, **seen):
    got = count_ranks(
        lambda lo, hi: scores[:, lo:hi], targets, scores.shape[1] - 1, block_items, **seen
    )
    assert all(c.dtype == torch.int64 for c in got)
    return tuple(c.tolist() for c in got)


@given(
    users=st.sampled_from((0, 1, 3, 20)),
    items=st.sampled_from((1, 2, 9, 40)),
    levels=st.sampled_from((1, 3, 1000)),
    block_items=st.sampled_from((1, 7, 40, 8192)),
    mask=st.booleans(),
    dtype=st.sampled_from((torch.float16, torch.float32, torch.float64)),
    seed=st.integers(0, 99),
)
@example(20, 40, 3, 7, True, torch.float32, 1)
def test_counts_equal_brute_force_with_ties(users, items, levels, block_items, mask, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (users, items + 1), generator=random).to(dtype)
    targets = torch.randint(1, items + 1, (users,), generator=random)
    seen = {}
    if mask:  # repeats, and now and then the target itself
        lengths = torch.randint(0, 6, (users,), generator=random)
        cu_seen = torch.cat((torch.zeros(1).long(), lengths.cumsum(0)))
        packed = torch.randint(1, items + 1, (int(cu_seen[-1]),), generator=random)
        seen = {"seen": packed, "cu_seen": cu_seen}
    before = scores.clone()
    assert counts(scores, targets, block_items, **seen) == brute_force(scores, targets, **seen)
    assert torch.equal(scores, before)


def test_more_users_than_one_chunk_holds(monkeypatch):
    monkeypatch.setattr("recblr.ops.rank.CHUNK_SCORES", 64)
    scores = torch.randint(5, (33, 21)).float()
    targets = torch.arange(33) % 20 + 1
    seen = {"seen": torch.randint(1, 21, (66,)), "cu_seen": torch.arange(0, 67, 2)}
    assert counts(scores, targets, 8, **seen) == brute_force(scores, targets, **seen)


def test_a_constant_scorer_ties_with_every_item():
    higher, equal = counts(torch.zeros(4, 31), torch.tensor([1, 5, 30, 2]), block_items=7)
    assert higher == [0] * 4
    assert equal == [29] * 4


def test_equal_item_rows_tie_in_a_matrix_product():
    representation, rows = torch.randn(50, 16), torch.randn(12, 16)
    items = rows[torch.arange(601) % 12]
    for block_items in (96, 600, 8192):
        _, equal = count_ranks(
            lambda lo, hi: representation @ items[lo:hi].T,
            torch.arange(1, 51),
            600,
            block_items,
        )
        assert equal.tolist() == [49] * 50


def test_padding_is_never_asked_for_and_every_item_is():
    asked = []

    def score_block(lo, hi):
        asked.append((lo, hi))
        return torch.zeros(2, hi - lo)

    count_ranks(score_block, torch.tensor([3, 30]), 30, block_items=12)
    assert set(asked) == {(1, 13), (13, 25), (25, 31)}
    assert asked.count((25, 31)) == 1  # scored once: the first pass ends with it
    assert (13, 25) in asked and asked.count((13, 25)) == 1  # holds no target


def test_scores_never_exceed_one_block():
    def score_block(lo, hi):
        assert hi - lo <= 100
        return torch.zeros(3, hi - lo)

    count_ranks(score_block, torch.tensor([1, 500, 1000]), 1000, block_items=100)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [2, 9])
def test_scores_that_are_not_finite_are_an_error(value, column):
    scores = torch.zeros(5, 11)
    scores[[1, 3], column] = value
    with pytest.raises(ValueError, match="scores of 2 of 5 users contain NaN or infinity"):
        counts(scores, torch.tensor([2, 2, 2, 2, 9]), block_items=4)


def test_huge_finite_scores_are_no_error():
    scores = torch.full((2, 11), 3e38)
    scores[:, 4] = -3e38
    assert counts(scores, torch.tensor([4, 1])) == ([9, 0], [0, 8])


def test_scores_that_differ_by_the_smallest_step_do_not_tie():
    scores = torch.tensor([[0.0, 1e-45, 0.0, -1e-45]])
    assert counts(scores, torch.tensor([2])) == ([1], [0])


def test_a_target_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"targets span 0\.\.3, expected 1\.\.10"):
        counts(torch.zeros(2, 11), torch.tensor([0, 3]))
