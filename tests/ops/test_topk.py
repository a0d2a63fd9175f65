import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recblr.ops.topk import cpu, library, top_k


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


@given(
    rows=st.sampled_from((0, 1, cpu.FEW, cpu.FEW + 1, 30)),
    width=st.sampled_from((1, 9, cpu.LANES + 3, 4 * cpu.LANES)),
    levels=st.sampled_from((1, 3, 10**6)),
    k=st.sampled_from((1, 3, 10, 300)),
    wider=st.integers(0, 2),
    stride=st.sampled_from((1, 2)),
    nans=st.sampled_from((0, 1, 20)),
    seed=st.integers(0, 99),
)
@example(30, 1024, 10**6, 10, 1, 1, 0, 0)
def test_one_pass_equals_the_search_of_torch(rows, width, levels, k, wider, stride, nans, seed):
    random = torch.Generator().manual_seed(seed)
    shape = rows, wider + stride * width
    scores = torch.randint(levels, shape, generator=random).float()[:, wider::stride]
    scores[:1, torch.randint(width, (nans,), generator=random)] = torch.nan
    scores[-1:] = scores[-1:].sort().values  # every one is above all before it
    values, columns = cpu.topk_rows(scores, k)
    expected = library.topk_rows(scores, k)
    torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values, scores.gather(1, columns), rtol=0, atol=0, equal_nan=True)
    number = ~values.isnan()
    assert torch.equal(columns[number], expected[1][number])


@pytest.mark.parametrize("users", [1, 2])
def test_scores_that_are_one_row_for_all_users_are_not_written_to(users):
    row = torch.arange(6.0)
    seen = (torch.tensor([0]), torch.tensor([5]))
    _, items = top_k(lambda lo, hi: row[lo:hi].expand(users, -1), 2, 5, seen=seen)
    assert items.tolist() == [[4, 3], [5, 4]][:users]
    assert row.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [5, 150])
def test_every_dtype_and_long_lists(dtype, k):
    scores = torch.randint(90, (3, 401)).to(dtype)
    assert lists(scores, k, block_items=170) == brute_force(scores, k)


def test_a_list_of_nothing_is_refused():
    with pytest.raises(ValueError, match="k=0: must be 1 or more"):
        top_k(lambda lo, hi: torch.rand(2, hi - lo), 0, 9)


@pytest.mark.parametrize("items", [9, 900])
def test_nan_is_refused(items):
    scores = torch.rand(12, items + 1)
    scores[2, 4] = torch.nan
    with pytest.raises(ValueError, match="scores of 1 users contain NaN"):
        top_k(lambda lo, hi: scores[:, lo:hi], 3, items)
