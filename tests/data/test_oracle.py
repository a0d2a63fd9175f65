"""The whole preparation against twenty lines of pandas that share nothing with it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from batches import histories
from hypothesis import given, settings
from hypothesis import strategies as st

from recblr.data.catalog import LogFile
from recblr.data.readers import read_log
from recblr.data.sequences import temporal

events = st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 40))
logs = st.lists(events, min_size=1, max_size=70)
START = 978_300_000  # float32 steps are 64 s here


def oracle(rows, repeats, k, order, split, cut):
    """Raw user -> (training events, validation item and its history, test item and its history)."""
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    if repeats != "keep":
        frame = frame.sort_values("time", kind="stable")
        frame = frame.drop_duplicates(["user", "item"], keep=repeats).sort_index()
    size = -1
    while size != len(frame) and k > 1:
        size = len(frame)
        of_user, of_item = frame["user"].value_counts(), frame["item"].value_counts()
        enough = frame["user"].map(of_user).ge(k) & frame["item"].map(of_item).ge(k)
        frame = frame[enough]
    if order == "recbole_float32":
        frame = frame.assign(time=frame["time"].astype(np.float32))
    keys = ["time", "item"] if order == "item_id" else ["time"]
    frame = frame.sort_values(keys, kind="stable")
    if len(frame):
        ranked = np.sort(frame["time"])
        moments = [ranked[int(np.floor(q * (len(ranked) - 1)))] for q in cut]
    parts = {}
    for user, own in frame.groupby("user"):
        items, times = own["item"].astype(str).tolist(), own["time"].to_numpy()
        n = len(items)
        if split == "leave_one_out":
            train, val, test = (n - 2, n - 2, n - 1) if n >= 3 else (n, None, None)
        else:
            train, until = ((times <= moment).sum() for moment in moments)
            val = until - 1 if until > train and until > 1 else None
            test = n - 1 if n > until and n > 1 else None
        targets = [None if at is None else (items[at], items[:at]) for at in (val, test)]
        parts[str(user)] = (items[:train], *targets)
    return parts


def ours(store):
    parts, split = {}, store.split
    for user, (name, items) in enumerate(histories(store).items()):
        start = store.offsets[user]
        at = [None if t[user] < 0 else t[user] - start for t in (split.val, split.test)]
        targets = [None if t is None else (items[t], items[:t]) for t in at]
        parts[name] = (items[: split.train_stops[user] - start], *targets)
    return parts


@settings(max_examples=300)
@given(
    logs,
    st.sampled_from(["keep", "first", "last"]),
    st.integers(0, 3),
    st.sampled_from(["exact", "recbole_float32", "item_id"]),
    st.sampled_from(["leave_one_out", "temporal"]),
    st.sampled_from([[0.8, 0.9], [0.5, 0.75], [0.1, 0.95]]),
)
def test_preparation_equals_the_oracle(tmp_path_factory, rows, repeats, k, order, split, cut):
    rows = [(user, item, START + 20 * time) for user, item, time in rows]
    path = tmp_path_factory.mktemp("oracle") / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    log = LogFile(
        name="mine", path=str(path), order=order, repeats=repeats, min_interactions=k, split=split,
        cut=cut,
    )  # fmt: skip
    expected = oracle(rows, repeats, k, order, split, cut)
    if (split == "temporal" and order == "recbole_float32") or not expected:
        with pytest.raises(ValueError, match=r"needs times and data.order|nothing is left"):
            log.prepare(read_log(path), path)
        return
    store, _ = log.prepare(read_log(path), path)
    assert ours(store) == expected


@settings(max_examples=100)
@given(logs)
def test_no_training_event_is_later_than_the_cut(rows):
    frame = pd.DataFrame(rows, columns=["user", "item", "time"]).sort_values(["user", "time"])
    offsets = np.append(0, np.cumsum(frame.groupby("user").size().to_numpy()))
    times = frame["time"].to_numpy()
    split = temporal(offsets, times, (0.8, 0.9))
    first, second = np.quantile(times, (0.8, 0.9), method="lower")
    training = np.zeros(len(times), bool)
    for start, stop in zip(offsets[:-1], split.train_stops, strict=True):
        training[start:stop] = True
    assert (times[training] <= first).all() and (times[~training] > first).all()
    val, test = (targets[targets >= 0] for targets in (split.val, split.test))
    assert ((times[val] > first) & (times[val] <= second)).all() and (times[test] > second).all()
