"""SequenceBatch: padding, last items, devices."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch
from batches import batch_of
from hypothesis import given
from hypothesis import strategies as st

from recblr.data.batch import SequenceBatch


@pytest.fixture
def batch() -> SequenceBatch:
    return batch_of([[5, 6, 7], [8], [1, 2]], [9, 9, 9])


def test_padding_on_the_right(batch):
    assert batch.padded("right").tolist() == [[5, 6, 7], [8, 0, 0], [1, 2, 0]]
    assert batch.padded().tolist() == batch.padded("right").tolist()


def test_padding_on_the_left(batch):
    assert batch.padded("left").tolist() == [[5, 6, 7], [0, 0, 8], [0, 1, 2]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_nothing_away(batch, side):
    padded = batch.padded(side)
    assert padded[padded > 0].tolist() == batch.items.tolist()


def test_last_points_at_each_sequences_last_item(batch):
    assert batch.items[batch.last].tolist() == [7, 8, 2]


def test_length_and_lengths(batch):
    assert len(batch) == 3 and batch.lengths.tolist() == [3, 1, 2]


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_sequence_and_place_of_a_row(lengths):
    batch = batch_of([[7] * length for length in lengths])
    expected = [(s, t) for s, length in enumerate(lengths) for t in range(length)]
    assert list(zip(batch.sequence.tolist(), batch.place.tolist())) == expected


@given(
    sequences=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), max_size=6),
    random=st.randoms(),
)
def test_what_a_row_has_met_is_once_each_item_of_its_sequence_up_to_it(sequences, random):
    batch = batch_of(sequences)
    chosen = random.choices(range(len(batch.items)), k=random.randint(0, 9)) if sequences else []
    prefixes = [sequence[: t + 1] for sequence in sequences for t in range(len(sequence))]
    expected = [(n, item) for n, row in enumerate(chosen) for item in sorted(set(prefixes[row]))]
    index, items = batch.met(torch.tensor(chosen, dtype=torch.int64))
    assert list(zip(index.tolist(), items.tolist())) == expected


@given(
    sequences=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), max_size=6),
    ahead=st.integers(1, 4),
    random=st.randoms(),
)
def test_targets_ahead_are_those_of_a_row_and_of_the_rows_after_it(sequences, ahead, random):
    targets = [[random.randint(0, 6) for _ in sequence] for sequence in sequences]
    batch = batch_of(sequences, list(chain(*targets)))
    rows = [(own + [0] * ahead)[t : t + ahead] for own in targets for t in range(len(own))]
    chosen = random.choices(range(len(rows)), k=random.randint(0, 9)) if rows else []
    found = batch.targets_ahead(torch.tensor(chosen, dtype=torch.int64), ahead)
    assert found.shape == (len(chosen), ahead)
    assert found.tolist() == [rows[row] for row in chosen]


def test_targets_ahead_need_a_target_per_position(batch):
    with pytest.raises(AssertionError, match="none is after it"):
        batch.targets_ahead(batch.last, 2)


def test_targets_are_one_per_sequence_or_one_per_position(batch):
    assert batch.one_target_per_sequence
    assert not batch_of([[5, 6], [7]], [6, 1, 2]).one_target_per_sequence


def test_to_moves_all_but_the_host_copy():
    seen, cu_seen = torch.tensor([1]), torch.tensor([0, 1])
    batch = replace(batch_of([[1]], [2]), seen=seen, cu_seen=cu_seen)
    moved = batch.to("meta")
    for name in ("items", "cu_seqlens", "targets", "user_ids", "seen", "cu_seen"):
        assert getattr(moved, name).device.type == "meta"
    assert moved.cu_seqlens_host is batch.cu_seqlens_host
    assert batch.items.device.type == "cpu"


def test_to_leaves_absent_parts_absent(batch):
    moved = batch.to("cpu")
    assert moved.seen is None and moved.cu_seen is None
    assert moved.items.tolist() == batch.items.tolist()


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), full=st.integers(1, 7))
def test_one_more_item_in_each_sequence_pushes_out_the_oldest_of_full_ones(lengths, full):
    sequences = [[10 * b + t + 1 for t in range(length)] for b, length in enumerate(lengths)]
    events = list(range(100, 100 + len(lengths)))
    batch = batch_of(sequences, [9] * len(lengths)).with_one_more(torch.tensor(events), full)
    longer = [
        [*(items[1:] if len(items) >= full else items), event]
        for items, event in zip(sequences, events, strict=True)
    ]
    expected = batch_of(longer, [9] * len(lengths))
    for name in ("items", "cu_seqlens", "cu_seqlens_host", "targets"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
