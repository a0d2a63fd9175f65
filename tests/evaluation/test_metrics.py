import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from recblr.evaluation.metrics import CUTOFFS, RankingMetrics, expected_metrics
from recblr.ops.rank import count_ranks

NAMES = {f"{metric}@{k}" for metric in ("hr", "ndcg", "mrr") for k in (10, 20)}


def metrics_of(higher, equal, k):
    values = expected_metrics(torch.tensor([higher]), torch.tensor([equal]), k)
    return {name.split("@")[0]: value.item() for name, value in values.items()}


# Gains of the ranks 1, 2, 4, 10, 11: 1 / log2(rank + 1).
G1, G2, G4, G10, G11 = 1, 0.6309297535714575, 0.43067655807339306, 0.289064826318, 0.278942945651


@pytest.mark.parametrize(
    ("higher", "equal", "k", "hr", "ndcg", "mrr"),
    [
        (0, 0, 10, 1, G1, 1),
        (3, 0, 10, 1, G4, 1 / 4),
        (9, 0, 10, 1, G10, 1 / 10),
        (10, 0, 10, 0, 0, 0),
        (10, 0, 20, 1, G11, 1 / 11),
        (20, 0, 20, 0, 0, 0),
        (0, 1, 10, 1, (G1 + G2) / 2, (1 + 1 / 2) / 2),
        (9, 1, 10, 1 / 2, G10 / 2, 1 / 20),
        (9, 3, 10, 1 / 4, G10 / 4, 1 / 40),
        (0, 19, 10, 1 / 2, None, None),
        (5000, 7000, 20, 0, 0, 0),
    ],
)
def test_metrics_of_one_user_are_those_worked_by_hand(higher, equal, k, hr, ndcg, mrr):
    got = metrics_of(higher, equal, k)
    for name, expected in (("hr", hr), ("ndcg", ndcg), ("mrr", mrr)):
        if expected is not None:
            assert got[name] == pytest.approx(expected, abs=1e-12), name


@given(higher=st.integers(0, 12), equal=st.integers(0, 5), k=st.integers(1, 14))
def test_ties_give_the_mean_over_every_order_of_the_tied_items(higher, equal, k):
    target, gains = 0, {"hr": [], "ndcg": [], "mrr": []}
    for order in permutations(range(equal + 1)):
        rank = higher + 1 + order.index(target)
        gains["hr"].append(float(rank <= k))
        gains["ndcg"].append(1 / math.log2(rank + 1) if rank <= k else 0.0)
        gains["mrr"].append(1 / rank if rank <= k else 0.0)
    got = metrics_of(higher, equal, k)
    for name, values in gains.items():
        assert got[name] == pytest.approx(sum(values) / len(values), abs=1e-12), name


@pytest.mark.parametrize("n_items", [3, 10, 37, 1000])
def test_a_constant_scorer_gets_chance_level(n_items):
    targets = torch.arange(1, n_items + 1)
    higher, equal = count_ranks(lambda lo, hi: torch.ones(n_items, hi - lo), targets, n_items)
    metrics = RankingMetrics()
    metrics.update(higher, equal)
    values = metrics.compute()
    for k in CUTOFFS:
        ranks = range(1, min(k, n_items) + 1)
        assert values[f"hr@{k}"].item() == pytest.approx(min(k, n_items) / n_items)
        expected = sum(1 / math.log2(rank + 1) for rank in ranks) / n_items
        assert values[f"ndcg@{k}"].item() == pytest.approx(expected)
        assert values[f"mrr@{k}"].item() == pytest.approx(sum(1 / r for r in ranks) / n_items)


@pytest.mark.parametrize("k", CUTOFFS)
def test_torchmetrics_agrees_where_there_are_no_ties(k):
    users, n_items = 200, 60
    scores = torch.rand(users, n_items, dtype=torch.float64)
    targets = torch.randint(1, n_items + 1, (users,))
    higher, equal = count_ranks(lambda lo, hi: scores[:, lo - 1 : hi - 1], targets, n_items)
    assert not equal.any()
    metrics = RankingMetrics()
    metrics.update(higher, equal)
    values = metrics.compute()

    relevant = torch.zeros(users, n_items, dtype=torch.bool)
    relevant[torch.arange(users), targets - 1] = True
    query = torch.arange(users)[:, None].expand(users, n_items)
    oracles = {"hr": RetrievalHitRate, "ndcg": RetrievalNormalizedDCG, "mrr": RetrievalMRR}
    for name, oracle in oracles.items():
        expected = oracle(top_k=k)(scores.flatten(), relevant.flatten(), query.flatten())
        assert 0 < expected < 1
        assert values[f"{name}@{k}"].item() == pytest.approx(expected.item(), abs=1e-6), name


@pytest.mark.parametrize("sizes", [[97], [1] * 97, [50, 0, 47], [3, 90, 4]])
def test_sums_do_not_depend_on_how_users_are_batched(sizes):
    higher, equal = torch.randint(0, 25, (97,)), torch.randint(0, 4, (97,))
    metrics = RankingMetrics()
    for part in zip(higher.split(sizes), equal.split(sizes)):
        metrics.update(*part)
    values = metrics.compute()
    assert values.keys() == NAMES
    for k in CUTOFFS:
        for name, per_user in expected_metrics(higher, equal, k).items():
            assert values[name].item() == pytest.approx(per_user.mean().item(), rel=1e-12)


def test_two_processes_add_up_to_one():
    whole, first, second = RankingMetrics(), RankingMetrics(), RankingMetrics()
    higher, equal = torch.randint(0, 25, (30,)), torch.randint(0, 4, (30,))
    whole.update(higher, equal)
    first.update(higher[:7], equal[:7])
    second.update(higher[7:], equal[7:])
    first.merge_state(second)
    assert first.users == 30
    for name, value in whole.compute().items():
        assert first.compute()[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_sums_keep_float64_where_float32_would_lose_users():
    metrics = RankingMetrics()
    metrics.totals += 2.0**24  # float32 has a step of 2 from here on
    metrics.update(torch.tensor([0]), torch.tensor([0]))
    assert metrics.totals[0] == 2**24 + 1


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_no_user_is_an_error_and_not_a_figure():
    with pytest.raises(ValueError, match="no user"):
        RankingMetrics().compute()
    metrics = RankingMetrics()
    metrics.update(torch.tensor([4]), torch.tensor([0]))
    metrics.compute()
    metrics.reset()
    with pytest.raises(ValueError, match="no user"):
        metrics.compute()
