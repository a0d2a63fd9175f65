"""A temporal split through rows, batches, floors and evaluation: nothing later than the cut."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from batches import store_of
from fitting import loaded
from hypothesis import given
from hypothesis import strategies as st

from recblr.data.sequences import SequenceStore, temporal

histories = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=2, max_size=8)


class Log:
    name = "log"

    def __init__(self, store: SequenceStore) -> None:
        self.store = store

    def load(self, seed: int = 0) -> SequenceStore:
        return self.store


def timed(times: list[list[int]], cut=(0.6, 0.8)) -> tuple[SequenceStore, np.ndarray]:
    """Events numbered 1..N, and the time of each (index = number)."""
    of_event = np.concatenate([sorted(own) for own in times])
    bounds = np.cumsum([0, *map(len, times)])
    store = store_of([list(range(a + 1, b + 1)) for a, b in itertools.pairwise(bounds)])
    split = temporal(store.offsets, of_event, cut)
    return replace(store, split=split), np.append(-1, of_event)


@pytest.mark.parametrize("mode", ["all_positions", "prefix"])
@given(times=histories, max_length=st.sampled_from([1, 3, 50]))
def test_training_reads_every_event_up_to_the_cut_and_none_after(mode, times, max_length):
    store, time_of = timed(times)
    first, _ = np.quantile(time_of[1:], (0.6, 0.8), method="lower")
    arguments = {"max_length": max_length, "batch_size": 4, "eval_batch_size": 3}
    try:
        data = loaded(Log(store), target_mode=mode, **arguments)
    except ValueError as error:
        assert "nobody to evaluate" in str(error) or "nothing to train" in str(error)
        return
    targets = [
        target
        for batch in data.train_dataloader()
        for target in [*batch.targets.tolist(), *(-item for item in batch.items.tolist())]
    ]
    assert all(time_of[abs(event)] <= first for event in targets)
    trained = sorted(target for target in targets if target > 0)
    early = [user[user_events_are_early(user, time_of, first)] for user in events(store)]
    assert trained == sorted(event for own in early for event in own[1:].tolist())

    part = data.training_part()
    counted = [
        event
        for start, stop in zip(part["starts"], part["stops"], strict=True)
        for event in part["items"][start:stop].tolist()
    ]
    assert sorted(counted) == [e for e in range(1, len(time_of)) if time_of[e] <= first]


def events(store: SequenceStore) -> list[np.ndarray]:
    return np.split(store.items, store.offsets[1:-1])


def user_events_are_early(user: np.ndarray, time_of: np.ndarray, first: int) -> np.ndarray:
    return time_of[user] <= first


@given(times=histories)
def test_history_of_a_target_is_all_that_its_user_did_before(times):
    store, _ = timed(times)
    arguments = {"max_length": 50, "batch_size": 4, "eval_batch_size": 3}
    try:
        data = loaded(Log(store), mask_history=True, **arguments)
    except ValueError:
        return
    for part in ("val", "test"):
        for batch in data.evaluation_loader(part):
            bounds = batch.cu_seqlens.tolist()
            for row, user in enumerate(batch.user_ids.tolist()):
                own = events(store)[user].tolist()
                target = int(batch.targets[row])
                before = own[: own.index(target)]
                assert batch.items[bounds[row] : bounds[row + 1]].tolist() == before
                seen = batch.seen[batch.cu_seen[row] : batch.cu_seen[row + 1]]
                assert seen.tolist() == before


def test_targets_are_the_last_events_of_their_period():
    store, _ = timed([[0, 1, 5, 6, 9], [0, 6], [9, 9], [0, 2]], cut=(0.5, 0.8))
    # times sorted: 0 0 0 1 2 5 6 6 9 9 9: cuts at 5 and 9 -> nothing is later than 9
    assert store.split.train_stops.tolist() == [3, 6, 7, 11]
    assert store.split.val.tolist() == [4, 6, 8, -1] and store.split.test.tolist() == [-1] * 4
