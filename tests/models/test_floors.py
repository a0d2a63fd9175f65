from itertools import pairwise

import numpy as np
import pytest
import torch
from batches import batch_of, random_sequences, store_of

from recblr.data.datamodule import SequenceDataModule
from recblr.models.base import Floor, SequentialModel, block_scorer
from recblr.models.markov import Markov
from recblr.models.popularity import Popularity
from recblr.ops.rank import count_ranks

FLOORS = [Popularity, Markov]
# Training parts in brackets: a user's last two events are validation and test, from 3 events on.
# [1 2 1 2] 3 4    [1 2] 5 5    [2 3]    [4]    [2] 1 1
USERS = [[1, 2, 1, 2, 3, 4], [1, 2, 5, 5], [2, 3], [4], [2, 1, 1]]
V = 6


def fitted(floor, sequences=USERS, n_items=V):
    store = store_of(sequences, n_items)
    model = floor(n_items)
    model.fit(store.items, store.offsets[:-1], store.split.train_stops)
    return model


def scores(model, sequences, n_items=V):
    return model.score_block(batch_of(sequences), 1, n_items + 1)


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_follow_their_protocol_and_not_the_trained_models(floor):
    assert isinstance(floor(V), Floor)
    assert not isinstance(floor(V), SequentialModel)
    assert not list(floor(V).parameters())


def test_popularity_counts_training_events():
    expected = [3, 5, 1, 1, 0, 0]  # items 1..6
    got = scores(fitted(Popularity), [[4], [1, 2, 3], [6]])
    assert got.tolist() == [expected] * 3


def test_markov_counts_training_pairs_of_the_last_item():
    model = fitted(Markov)
    got = scores(model, [[5, 5, 1], [2], [3], [6, 4]]).floor()
    assert got.tolist() == [
        [0, 3, 0, 0, 0, 0],  # 1 -> 2 in user 0 (twice) and user 1
        [1, 0, 1, 0, 0, 0],  # 2 -> 1 in user 0, 2 -> 3 in user 2
        [0, 0, 0, 0, 0, 0],  # 2 -> 3 ends user 2: no pair goes on into user 3's 4
        [0, 0, 0, 0, 0, 0],  # nor from 4 to user 4's 2
    ]


def test_markov_orders_equal_pairs_by_popularity_and_never_above_a_pair():
    model = fitted(Markov)
    got = scores(model, [[2], [6]])
    popularity = torch.tensor([3, 5, 1, 1, 0, 0]) / 10
    torch.testing.assert_close(got[1], popularity)
    torch.testing.assert_close(got[0], popularity + torch.tensor([1, 0, 1, 0, 0, 0]))
    assert got[0].argsort(descending=True)[:3].tolist() == [0, 2, 1]  # items 1, 3, then 2


@pytest.mark.parametrize("floor", FLOORS)
def test_validation_and_test_items_do_not_count(floor):
    changed = [[1, 2, 1, 2, 6, 6], [1, 2, 6, 1], [2, 3], [4], [2, 6, 3]]
    histories = [[item] for item in range(1, V + 1)]
    assert torch.equal(scores(fitted(floor), histories), scores(fitted(floor, changed), histories))


@pytest.mark.parametrize("floor", FLOORS)
def test_the_last_training_event_counts(floor):
    changed = [[1, 2, 1, 3, 3, 4], *USERS[1:]]
    histories = [[item] for item in range(1, V + 1)]
    assert not torch.equal(
        scores(fitted(floor), histories), scores(fitted(floor, changed), histories)
    )


@pytest.mark.parametrize("floor", FLOORS)
def test_fitting_again_starts_from_nothing(floor):
    model = fitted(floor, [[6, 6, 6, 6, 1, 1]])
    store = store_of(USERS, V)
    model.fit(store.items, store.offsets[:-1], store.split.train_stops)
    histories = [[item] for item in range(1, V + 1)]
    assert torch.equal(scores(model, histories), scores(fitted(floor), histories))


@pytest.mark.parametrize("floor", FLOORS)
def test_blocks_of_items_join_to_the_whole(floor):
    n_items = 37
    model = fitted(floor, random_sequences([12] * 40, n_items), n_items)
    batch = batch_of(random_sequences([1, 5, 2, 9, 1], n_items, seed=1))
    whole = model.score_block(batch, 1, n_items + 1)
    for size in (1, 5, 36):
        edges = [*range(1, n_items + 1, size), n_items + 1]
        parts = [model.score_block(batch, lo, hi) for lo, hi in pairwise(edges)]
        assert torch.equal(torch.cat(parts, 1), whole)
    targets = torch.tensor([1, 37, 20, 5, 36])
    expected = count_ranks(block_scorer(model, batch), targets, n_items)
    got = count_ranks(block_scorer(model, batch), targets, n_items, block_items=7)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_markov_equals_a_dense_count_matrix():
    n_items = 23
    sequences = random_sequences(np.random.default_rng(4).integers(1, 15, 200), n_items)
    counts = torch.zeros(n_items + 1, n_items + 1)
    for sequence in sequences:
        training = sequence[:-2] if len(sequence) >= 3 else sequence
        for item, successor in pairwise(training):
            counts[item, successor] += 1
    model = fitted(Markov, sequences, n_items)
    got = scores(model, [[item] for item in range(1, n_items + 1)], n_items)
    assert torch.equal(got.floor(), counts[1:, 1:])


def test_the_data_module_hands_floors_the_training_part_only():
    class Log:
        name = "log"

        def load(self, seed=0):
            return store_of(USERS, V)

    data = SequenceDataModule(Log(), max_length=3, batch_size=4, eval_batch_size=4, seed=0)
    data.load()
    model = Popularity(V)
    model.fit(**data.training_part())
    assert torch.equal(model.counts, fitted(Popularity).counts)
