import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recblr.ops.topk import GROUP, top_k


def brute_force(scores, k, allowed=None, seen=None):
    """Sorts every row by score, then by id."""
    hidden = set() if seen is None else set(zip(*(side.tolist() for side in seen)))
    best, chosen = [], []
    for user, row in enumerate(scores.tolist()):
        ranked = sorted(
            (-score, item)
            for item, score in enumerate(row)
            if item and (user, item) not in hidden and (allowed is None or allowed[item])
        )[:k]
        ranked += [(torch.inf, 0)] * (k - len(ranked))
        best.append([-score for score, _ in ranked])
        chosen.append([item for _, item in ranked])
    return best, chosen


def lists(scores, k, **rest):
    got = top_k(lambda lo, hi: scores[:, lo:hi].clone(), k, scores.shape[1] - 1, **rest)
    return tuple(side.tolist() for side in got)


@given(
    users=st.sampled_from((1, 3, 20)),
    items=st.sampled_from((1, 9, 40, 700)),
    levels=st.sampled_from((1, 3, 1000, 10**6)),
    k=st.sampled_from((1, 3, 10)),
    block_items=st.sampled_from((1, 7, 300, 16384)),
    mask=st.booleans(),
    seed=st.integers(0, 99),
)
@example(20, 700, 3, 3, 16384, True, 1)
@example(20, 700, 10**6, 3, 16384, False, 1)
@example(3, 700, 10**6, 1, 300, True, 2)
def test_it_is_the_sorted_catalogue_with_ties_by_id(
    users, items, levels, k, block_items, mask, seed
):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (users, items + 1), generator=random).float()
    rest = {}
    if mask:
        pairs = (torch.randint(users, (50,), generator=random),)
        pairs += (torch.randint(1, items + 1, (50,), generator=random),)
        rest = {"seen": pairs, "allowed": torch.rand(items + 1, generator=random) < 0.7}
    expected = brute_force(scores, k, **rest)
    assert lists(scores, k, block_items=block_items, **rest) == expected


def test_the_best_of_one_group_are_all_found():
    """The grouped search takes the best groups: here one group has all of the best."""
    groups = 4000 // GROUP
    scores = torch.rand(20, 4001)
    scores[:, 1 + 5 : 1 + 5 + groups * GROUP : groups] += 1
    assert lists(scores, 12) == brute_force(scores, 12)


def test_scores_that_are_one_row_for_all_users_are_not_written_to():
    row = torch.arange(6.0)
    seen = (torch.tensor([0]), torch.tensor([5]))
    _, items = top_k(lambda lo, hi: row[lo:hi].expand(2, -1), 2, 5, seen=seen)
    assert items.tolist() == [[4, 3], [5, 4]]
    assert row.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("items", [9, 900])
def test_nan_is_refused(items):
    scores = torch.rand(12, items + 1)
    scores[2, 4] = torch.nan
    with pytest.raises(ValueError, match="scores of 1 users contain NaN"):
        top_k(lambda lo, hi: scores[:, lo:hi], 3, items)
