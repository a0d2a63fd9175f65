"""Repeats, k-core, order and ids, against a plain pandas oracle that shares no code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from batches import histories
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.preprocess import apply_repeats, k_core, pack, sort_rows
from recblr.data.readers import Interactions


def interactions(rows: list[tuple], timed: bool = True) -> Interactions:
    """Rows of (raw user, raw item, time)."""
    users, user_ids = pd.factorize(pd.Series([str(r[0]) for r in rows], dtype=object))
    items, item_ids = pd.factorize(pd.Series([str(r[1]) for r in rows], dtype=object))
    times = np.array([r[2] for r in rows], dtype=np.int64) if timed else None
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        times,
        pa.array(user_ids, pa.string()),
        pa.array(item_ids, pa.string()),
        "table",
    )


logs = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60
)


# Users a..d, k = 2. Round 1 drops item z (one row). Then d has one row: round 2 drops it. Nothing
# else falls, so round 3 changes nothing.
THREE_ROUNDS = [
    ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "y"), ("d", "x"), ("d", "z"),
]  # fmt: skip


def test_hand_written_log_needs_three_rounds():
    log = interactions([(*row, 0) for row in THREE_ROUNDS])
    mask, rounds = k_core(log.users, log.items, 2)
    assert [tuple(r) for r in rounds] == [(7, 4, 2), (6, 3, 2), (6, 3, 2)]
    assert mask.tolist() == [True] * 6 + [False] * 2


def test_users_and_items_fall_by_the_same_counts():
    # b has one row and z has one row, both in (b, z) and (a, z): one round must drop both.
    log = interactions([("a", "x", 0), ("a", "x", 0), ("a", "z", 0), ("b", "x", 0)])
    mask, rounds = k_core(log.users, log.items, 2)
    assert mask.tolist() == [True, True, False, False] and len(rounds) == 2


@pytest.mark.parametrize("k", [0, 1])
def test_k_of_one_or_less_filters_nothing(k):
    log = interactions([("a", "x", 0)])
    mask, rounds = k_core(log.users, log.items, k)
    assert mask.all() and rounds == []


def test_empty_result_names_the_counts_of_each_round():
    log = interactions([(u, "x", 0) for u in "aabbc"] + [("a", "y", 0)])
    with pytest.raises(ValueError, match=r"min_interactions=3: .* 2 / 1 / 1; 0 / 0 / 0\)\. Lower"):
        k_core(log.users, log.items, 3)


@settings(max_examples=100)
@given(logs, st.integers(2, 4))
def test_k_core_equals_repeated_pandas_filtering(rows, k):
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    counts = []
    while True:
        keep = (frame.groupby("user")["item"].transform("size") >= k) & (
            frame.groupby("item")["user"].transform("size") >= k
        )
        frame = frame[keep]
        counts.append((len(frame), frame["user"].nunique(), frame["item"].nunique()))
        if keep.all() or frame.empty:
            break
    log = interactions(rows)
    if frame.empty:
        with pytest.raises(ValueError, match=r"nothing is left"):
            k_core(log.users, log.items, k)
        return
    mask, rounds = k_core(log.users, log.items, k)
    assert np.flatnonzero(mask).tolist() == frame.index.tolist()
    assert [tuple(r) for r in rounds] == counts


@settings(max_examples=100)
@given(logs, st.sampled_from(["keep", "first", "last"]), st.booleans())
def test_repeats_equal_pandas_drop_duplicates(rows, policy, timed):
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    if timed:
        frame = frame.sort_values("time", kind="stable")
    if policy != "keep":
        frame = frame.drop_duplicates(["user", "item"], keep=policy)
    index = pd.DataFrame(rows).index.to_numpy()
    log = interactions(rows, timed)
    kept = apply_repeats(log, policy)
    expected = log.take(np.sort(index[frame.index]))
    assert kept.users.tolist() == expected.users.tolist()
    assert kept.items.tolist() == expected.items.tolist()
    if timed:
        assert kept.times.tolist() == expected.times.tolist()


def test_tied_repeats_fall_back_on_the_file_row():
    log = interactions([("a", "x", 5), ("a", "y", 5), ("a", "x", 5), ("a", "x", 1)])
    assert apply_repeats(log, "last").items.tolist() == [1, 0]  # y, then the third row
    assert apply_repeats(log, "first").times.tolist() == [5, 1]


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match=r"data.repeats=newest: expected keep, first or last"):
        apply_repeats(interactions([("a", "x", 0)]), "newest")  # type: ignore[arg-type]


@settings(max_examples=100)
@given(logs, st.sampled_from(["exact", "recbole_float32", "item_id"]))
def test_order_equals_pandas_sort_values(rows, order):
    rows = [(u, i, 978_300_000 + 30 * t) for u, i, t in rows]  # 30 s: ties in float32
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    frame["code"] = pd.factorize(frame["user"])[0]
    keys = ["code", "time", "item"] if order == "item_id" else ["code", "time"]
    if order == "recbole_float32":
        frame["time"] = frame["time"].astype(np.float32)
    expected = frame.sort_values(keys, kind="stable").index.tolist()
    assert sort_rows(interactions(rows), order).tolist() == expected


def test_item_id_order_is_numeric_only_if_every_id_is_an_integer():
    rows = [("a", item, 0) for item in ("10", "9", "-1")]
    assert histories(pack(interactions(rows), "item_id")) == {"a": ["-1", "9", "10"]}
    rows = [("a", item, 0) for item in ("9", "10", "x")]
    assert histories(pack(interactions(rows), "item_id")) == {"a": ["10", "9", "x"]}


def test_float32_order_ties_where_exact_order_does_not():
    log = interactions([("a", "late", 978_300_761), ("a", "early", 978_300_760)])
    assert histories(pack(log, "exact")) == {"a": ["early", "late"]}
    assert histories(pack(log, "recbole_float32")) == {"a": ["late", "early"]}


def test_ids_count_from_one_by_first_appearance_in_file_order():
    store = pack(interactions([("b", "y", 9), ("a", "x", 1), ("b", "z", 2)]), "exact")
    assert store.user_ids.tolist() == ["b", "a"]
    assert store.item_ids.tolist() == ["", "y", "x", "z"]
    assert store.items.tolist() == [3, 1, 2] and store.offsets.tolist() == [0, 2, 3]
    assert store.items.dtype == np.int32 and store.offsets.dtype == np.int64
    assert (store.n_users, store.n_items) == (2, 3)


def test_ids_are_numbered_after_the_filter():
    log = interactions(
        [("a", "gone", 0), ("a", "x", 1), ("b", "x", 2), ("a", "y", 3), ("b", "y", 4)]
    )
    mask, _ = k_core(log.users, log.items, 2)
    assert pack(log.take(mask), "exact").item_ids.tolist() == ["", "x", "y"]


def test_shuffled_order_is_fixed_by_the_seed_and_keeps_each_users_items():
    log = interactions([(u, i, i) for u in "ab" for i in range(20)])
    exact, one, two = (pack(log, "exact"), pack(log, "shuffled", 1), pack(log, "shuffled", 2))
    assert histories(one) == histories(pack(log, "shuffled", 1)) != histories(two)
    assert {u: sorted(h) for u, h in histories(one).items()} == {
        u: sorted(h) for u, h in histories(exact).items()
    }


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"data.order=random: unknown order"):
        sort_rows(interactions([("a", "x", 0)]), "random")


def test_store_takes_at_most_eight_bytes_per_interaction():
    store = pack(interactions([(u, i, i) for u in range(10) for i in range(20)]), "exact")
    assert store.items.nbytes + store.offsets.nbytes <= 8 * len(store.items)
