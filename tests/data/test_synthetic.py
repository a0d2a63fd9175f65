"""The synthetic log: its ceiling is exact, its floors are low, and noise is noise."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from recblr.data.loader import PackedLoader
from recblr.data.sequences import (
    evaluation_rows,
    training_rows,
)
from recblr.data.synthetic import SyntheticLog

SMALL = SyntheticLog(n_users=1500, n_items=60, mean_length=14)
NOISE = replace(SMALL, recent=0, earlier=0, taste=0, zipf=0)


@pytest.fixture(scope="module")
def default():
    log = SyntheticLog()
    return log, log.load()


def one_batch(store, rows):
    (batch,) = PackedLoader(store, rows, len(rows), budget="rows", one_target=True)
    return batch


def ndcg(scores: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of the targets (B,) among the columns 1.. of (B, V+1); ties count half."""
    own = scores[np.arange(len(targets)), targets][:, None]
    others = scores[:, 1:]
    rank = (others > own).sum(1) + ((others == own).sum(1) - 1) / 2
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())


def test_default_log_is_made_in_two_seconds_and_loses_nothing(default):
    log, store = default
    start = time.perf_counter()
    log.load()
    assert time.perf_counter() - start < 2
    assert (store.n_users, store.n_items) == (log.n_users, log.n_items)
    assert store.lengths.min() >= 5 and store.lengths.max() <= 2 * log.mean_length - 5
    assert store.lengths.mean() == pytest.approx(log.mean_length, rel=0.03)
    assert store.order == "file"


def test_log_is_fixed_by_its_own_seed():
    assert SMALL.load(seed=1).split_hash == SMALL.load(seed=2).split_hash
    assert SMALL.load().split_hash != replace(SMALL, seed=1).load().split_hash


@pytest.mark.parametrize(
    "log", [SMALL, replace(SMALL, lag=3), NOISE], ids=["lag2", "lag3", "noise"]
)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_ceiling_is_the_probability_that_the_log_was_drawn_with(log, length):
    store = log.load()
    rows = training_rows(store, 50, "prefix")
    keep = rows.stop - rows.start == length
    batch = one_batch(store, type(rows)(*(column[keep] for column in vars(rows).values())))
    p = log.ceiling(store).score_block(batch, 0, store.n_items + 1).double().numpy()
    assert p.sum(1) == pytest.approx(1, abs=1e-5) and (p[:, 0] == 0).all()
    # The target's probability has the mean sum p^2; its deviation gives the standard error.
    drawn = p[np.arange(len(p)), batch.targets.numpy()]
    expected = (p**2).sum(1)
    error = np.sqrt(np.maximum((p**3).sum(1) - expected**2, 0).mean() / len(p))
    assert abs(drawn.mean() - expected.mean()) < 4 * error + 1e-7
    # So has the share of hits of the likeliest item.
    hit, sure = p.argmax(1) == batch.targets.numpy(), p.max(1)
    error = np.sqrt((sure * (1 - sure)).mean() / len(p))
    assert abs(hit.mean() - sure.mean()) < 4 * error


def test_ceiling_in_blocks_equals_the_whole():
    store = SMALL.load()
    ceiling = SMALL.ceiling(store)
    batch = one_batch(store, evaluation_rows(store, "test", 50))
    whole = ceiling.score_block(batch, 1, store.n_items + 1)
    bounds = [1, 2, 20, store.n_items + 1]
    blocks = [ceiling.score_block(batch, a, b) for a, b in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(blocks, 1), whole) and whole.dtype == torch.float32


def test_ceiling_does_not_depend_on_the_window_once_it_holds_the_lag():
    store = SMALL.load()
    ceiling = SMALL.ceiling(store)
    long, short = (
        ceiling.score_block(one_batch(store, evaluation_rows(store, "test", n)), 1, 61)
        for n in (50, SMALL.lag)
    )
    assert torch.equal(long, short)


def test_popularity_and_first_order_markov_stay_far_below_the_ceiling(default):
    log, store = default
    batch = one_batch(store, evaluation_rows(store, "test", 50))
    targets, width = batch.targets.numpy(), store.n_items + 1
    best = ndcg(log.ceiling(store).score_block(batch, 0, width).numpy(), targets)

    inside = np.zeros(len(store.items), bool)
    for start, stop in zip(store.offsets[:-1], store.split.train_stops, strict=True):
        inside[start:stop] = True
    popular = np.bincount(store.items[inside], minlength=width).astype(float)
    moves = np.zeros((width, width))
    rows = training_rows(store, 50, "prefix")
    np.add.at(moves, (store.items[rows.stop - 1], store.items[rows.stop]), 1)
    last = batch.items[batch.last].numpy()

    assert best > 0.5
    assert ndcg(np.tile(popular, (len(last), 1)), targets) < 0.2 * best
    assert ndcg(moves[last] + popular / popular.sum() / 2, targets) < 0.5 * best


def test_without_causes_every_item_is_equally_likely_and_the_past_says_nothing():
    store = NOISE.load()
    counts = np.bincount(store.items)[1:]
    spread = ((counts - counts.mean()) ** 2 / counts.mean()).sum()  # chi-square, 59 degrees
    assert spread < 59 + 5 * np.sqrt(2 * 59)
    batch = one_batch(store, evaluation_rows(store, "test", 50))
    scores = NOISE.ceiling(store).score_block(batch, 1, store.n_items + 1)
    assert torch.allclose(scores, torch.full_like(scores, 1 / store.n_items))


@pytest.mark.parametrize(
    "change",
    [{"recent": -0.1}, {"recent": 0.6, "earlier": 0.6}, {"mean_length": 4}, {"n_items": 7},
     {"lag": 0}, {"n_users": 0}],
)  # fmt: skip
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=r"^data\."):
        SyntheticLog(**change)


def test_ceiling_is_refused_where_the_filter_removed_events():
    log = SyntheticLog(n_users=40, n_items=100, mean_length=10)
    with pytest.raises(ValueError, match="the 5-core removed events"):
        log.ceiling(log.load())
