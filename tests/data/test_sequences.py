"""Rows are views with every target once, nothing leaks, batches and hashes are fixed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.loader import PackedLoader
from recblr.data.sequences import (
    Rows,
    evaluation_rows,
    training_rows,
)

STORED_HASH = "68f81af4e79dbff933b4708f0783541f07759e5bebd5229319d44631d7dc5d22"
LENGTHS = [7, 1, 2, 3, 4, 30]
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def targets_of(rows: Rows) -> list[int]:
    """Absolute index of every target of every row."""
    return [
        p + 1
        for first, stop in zip(rows.target_from, rows.stop, strict=True)
        for p in range(first, stop)
    ]


def expected_targets(store) -> list[int]:
    """All training events but each user's first."""
    bounds = zip(store.offsets[:-1], store.split.train_stops, strict=True)
    return [p for first, stop in bounds for p in range(first + 1, stop)]


def test_last_two_events_are_held_out_from_three_events_on(numbered_store):
    store = numbered_store(LENGTHS)
    assert (store.split.train_stops - store.offsets[:-1]).tolist() == [5, 1, 2, 1, 2, 28]


@settings(max_examples=100)
@given(lengths=lengths, max_length=st.integers(1, 45))
@pytest.mark.parametrize("mode", ["all_positions", "prefix"])
def test_every_target_is_trained_exactly_once(numbered_store, mode, lengths, max_length):
    store = numbered_store(lengths)
    rows = training_rows(store, max_length, mode)
    assert sorted(targets_of(rows)) == expected_targets(store)


@settings(max_examples=100)
@given(lengths=lengths, max_length=st.integers(1, 45))
@pytest.mark.parametrize("mode", ["all_positions", "prefix"])
def test_rows_lie_within_their_user_and_max_length(numbered_store, mode, lengths, max_length):
    store = numbered_store(lengths)
    rows = training_rows(store, max_length, mode)
    size = rows.stop - rows.start
    assert (size >= 1).all() and (size <= max_length).all()
    assert (rows.start >= store.offsets[rows.user]).all()
    assert (rows.target_from >= rows.start).all() and (rows.target_from < rows.stop).all()
    assert (
        rows.stop < store.split.train_stops[rows.user]
    ).all()  # the last target is still training


@settings(max_examples=100)
@given(lengths=lengths, max_length=st.integers(1, 45))
def test_long_users_are_cut_into_full_windows_with_enough_history(
    numbered_store, lengths, max_length
):
    store = numbered_store(lengths)
    rows = training_rows(store, max_length, "all_positions")
    inputs = (store.split.train_stops - store.offsets[:-1] - 1)[rows.user]
    assert ((rows.stop - rows.start) == np.minimum(inputs, max_length)).all()
    later = rows.start > store.offsets[rows.user]
    stride = max(1, max_length // 2)
    assert (rows.target_from - rows.start >= max_length - stride)[later].all()


def test_windows_of_a_long_user_by_hand(numbered_store):
    rows = training_rows(numbered_store([14]), 5, "all_positions")  # 11 inputs, stride 2
    assert rows.start.tolist() == [0, 2, 4, 6]
    assert rows.stop.tolist() == [5, 7, 9, 11]
    assert rows.target_from.tolist() == [0, 5, 7, 9]
    rows = training_rows(numbered_store([13]), 5, "all_positions")  # 10 inputs: the last is moved
    assert rows.start.tolist() == [0, 2, 4, 5]
    assert rows.stop.tolist() == [5, 7, 9, 10]
    assert rows.target_from.tolist() == [0, 5, 7, 9]


def test_prefix_rows_have_the_histories_of_windows_for_short_users(numbered_store):
    store = numbered_store(LENGTHS)
    windows = training_rows(store, 50, "all_positions")
    expected = [
        (user, start, position + 1)
        for user, start, stop in zip(windows.user, windows.start, windows.stop, strict=True)
        for position in range(start, stop)
    ]
    prefix = training_rows(store, 50, "prefix")
    assert list(zip(prefix.user, prefix.start, prefix.stop, strict=True)) == expected


@pytest.mark.parametrize("mode", ["all_positions", "prefix"])
@pytest.mark.parametrize("max_length", [1, 4, 7, 50])
def test_no_training_batch_holds_a_validation_or_test_item(numbered_store, mode, max_length):
    store = numbered_store(LENGTHS)
    long = store.lengths >= 3
    held_out = {int(store.offsets[u + 1]) - back for u in np.flatnonzero(long) for back in (0, 1)}
    rows = training_rows(store, max_length, mode)
    met = set()
    for batch in PackedLoader(store, rows, 8, budget="targets", one_target=mode == "prefix"):
        met |= set(batch.items.tolist()) | set(batch.targets.tolist())
    assert not met & held_out  # events are numbered from 1: event n is `items` index n - 1
    assert len(met - {0}) == len(store.items) - len(held_out) - 2  # users of 1 training event


def test_test_history_includes_the_validation_item(numbered_store):
    store = numbered_store([5, 2, 3])
    val, test = (evaluation_rows(store, split, 50) for split in ("val", "test"))
    assert val.user.tolist() == test.user.tolist() == [0, 2]
    assert [store.items[a:b].tolist() for a, b in zip(val.start, val.stop, strict=True)] == [
        [1, 2, 3], [8]
    ]  # fmt: skip
    assert [store.items[a:b].tolist() for a, b in zip(test.start, test.stop, strict=True)] == [
        [1, 2, 3, 4], [8, 9]
    ]  # fmt: skip
    assert store.items[val.stop].tolist() == [4, 9]
    assert store.items[test.stop].tolist() == [5, 10]


def test_evaluation_keeps_the_last_max_length_events(numbered_store):
    rows = evaluation_rows(numbered_store([10, 3]), "test", 4)
    assert rows.start.tolist() == [5, 10] and rows.stop.tolist() == [9, 12]


def test_bad_arguments_are_refused(numbered_store):
    store = numbered_store([5])
    with pytest.raises(ValueError, match="max_length=0: must be 1 or more"):
        training_rows(store, 0, "prefix")
    with pytest.raises(ValueError, match="max_length=-1"):
        evaluation_rows(store, "val", -1)
    with pytest.raises(ValueError, match="split=train: expected val or test"):
        evaluation_rows(store, "train", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target_mode=cloze: expected all_positions or prefix"):
        training_rows(store, 5, "cloze")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0: must be 1 or more"):
        PackedLoader(store, evaluation_rows(store, "val", 5), 0, budget="rows", one_target=True)


def load(store, rows, batch_size=8, **kwargs) -> PackedLoader:
    return PackedLoader(
        store, rows, batch_size, **{"budget": "targets", "one_target": False, **kwargs}
    )


def sequences(batch) -> list[tuple]:
    """(user, inputs, targets) per sequence."""
    bounds = itertools.pairwise(batch.cu_seqlens.tolist())
    items, targets = batch.items.tolist(), batch.targets.tolist()
    return [
        (user, tuple(items[a:b]), tuple(targets[a:b]))
        for user, (a, b) in zip(batch.user_ids.tolist(), bounds, strict=True)
    ]


def as_rows(store, rows: Rows) -> list[tuple]:
    return [
        (
            int(u),
            tuple(store.items[a:b].tolist()),
            tuple(int(store.items[p + 1]) if p >= t else 0 for p in range(a, b)),
        )
        for u, a, b, t in zip(rows.user, rows.start, rows.stop, rows.target_from, strict=True)
    ]


@pytest.mark.parametrize("shuffle", [None, (1, 2)])
@pytest.mark.parametrize("budget", ["targets", "rows"])
def test_every_row_comes_exactly_once_with_its_targets(numbered_store, shuffle, budget):
    store = numbered_store([9, 1, 2, 3, 17, 40])
    rows = training_rows(store, 6, "all_positions")
    loader = load(store, rows, shuffle=shuffle, budget=budget)
    got = [row for batch in loader for row in sequences(batch)]
    expected = as_rows(store, rows)
    assert sorted(got) == sorted(expected)
    assert (got == expected) == (shuffle is None)
    assert sum(int((b.targets > 0).sum()) for b in loader) == loader.n_targets
    assert len(list(loader)) == len(loader)


def test_order_is_fixed_by_seed_and_epoch(numbered_store):
    store = numbered_store([20] * 10)
    rows = training_rows(store, 6, "all_positions")

    def order(*shuffle: int) -> list[tuple]:
        return [row for batch in load(store, rows, shuffle=shuffle) for row in sequences(batch)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1) != order(1, 0)


def test_loader_can_be_read_again(numbered_store):
    store = numbered_store([20] * 10)
    loader = load(store, training_rows(store, 6, "all_positions"), shuffle=(0, 0))
    assert [sequences(b) for b in loader] == [sequences(b) for b in loader]


def test_batches_are_cut_by_the_targets_before_each_row(numbered_store):
    store = numbered_store([6, 6, 6, 6, 30, 6])  # 3, 3, 3, 3, 27, 3 targets
    rows = training_rows(store, 50, "all_positions")
    users = [batch.user_ids.tolist() for batch in load(store, rows, 6)]
    assert users == [[0, 1], [2, 3], [4], [5]]
    users = [batch.user_ids.tolist() for batch in load(store, rows, 4, budget="rows")]
    assert users == [[0, 1, 2, 3], [4, 5]]


def test_one_target_is_the_event_after_the_last_input(numbered_store):
    store = numbered_store([7, 3, 4])
    loader = load(store, evaluation_rows(store, "test", 50), budget="rows", one_target=True)
    (batch,) = loader
    assert batch.targets.tolist() == [7, 10, 14] and batch.one_target_per_sequence
    assert loader.n_targets == 3


def test_one_target_counts_one_per_row_in_the_budget(numbered_store):
    store = numbered_store([20])
    rows = training_rows(store, 50, "prefix")
    loader = load(store, rows, 5, one_target=True)
    assert [len(batch) for batch in loader] == [5, 5, 5, 2] and loader.n_targets == 17


def test_seen_is_the_whole_history_beyond_the_window(numbered_store):
    store = numbered_store([7, 3])
    rows = evaluation_rows(store, "test", 2)
    (batch,) = load(store, rows, budget="rows", one_target=True, seen=True)
    assert batch.items.tolist() == [5, 6, 8, 9]
    assert batch.seen.tolist() == [1, 2, 3, 4, 5, 6, 8, 9] and batch.cu_seen.tolist() == [0, 6, 8]
    (batch,) = load(store, rows, budget="rows", one_target=True)
    assert batch.seen is None and batch.cu_seen is None


def test_no_rows_give_no_batches(numbered_store):
    store = numbered_store([1, 2])
    loader = load(store, evaluation_rows(store, "val", 5))
    assert len(loader) == 0 and list(loader) == [] and loader.n_targets == 0


def test_split_hash_is_stable_across_machines(make_store):
    assert make_store([[1, 2, 3], [2, 1]]).split_hash == STORED_HASH


def test_split_hash_changes_when_one_item_moves(make_store):
    base = make_store([[1, 2, 3, 4], [2, 1, 3]]).split_hash
    changed = [
        [[1, 2, 4, 3], [2, 1, 3]],
        [[2, 1, 3, 4], [2, 1, 3]],
        [[1, 2, 3], [4, 2, 1, 3]],
        [[1, 2, 3, 4, 2], [1, 3]],
        [[2, 1, 3], [1, 2, 3, 4]],
    ]
    hashes = {make_store(sequences).split_hash for sequences in changed}
    assert base not in hashes and len(hashes) == len(changed)


def test_split_hash_sees_raw_ids_and_their_borders(make_store):
    store = make_store([[1, 2, 2]])
    renamed = [
        replace(store, item_ids=np.array(["", "i", "1i2"], dtype=object)),
        replace(store, item_ids=np.array(["", "i1i", "2"], dtype=object)),
        replace(store, user_ids=np.array(["u1"], dtype=object)),
    ]
    assert len({s.split_hash for s in [store, *renamed]}) == 4


def test_split_hash_does_not_depend_on_how_rows_are_cut(numbered_store):
    store = numbered_store(LENGTHS)
    before = store.split_hash
    for max_length in (1, 5, 50):
        rows = training_rows(store, max_length, "all_positions")
        list(load(store, rows, shuffle=(0, 0)))
    assert store.split_hash == before == replace(store, order="exact").split_hash
