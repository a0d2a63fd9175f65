import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from batches import batch_of
from made_up_model import LONGEST, V, made_up

from recblr.inference.live import FEW, FIRST, SLACK, FlatStep, rounds, traced, user_dim

RECURRENT = ("recblr", "gru4rec", "lrurec", "fpmc")
LONG = 3 * LONGEST  # the state reaches back further than the model was trained on


def raw(items):
    return [f"i{item}" for item in items]


def streams(lengths, seed=0):
    random = np.random.default_rng(seed)
    return {f"u{u}": random.integers(1, V + 1, n).tolist() for u, n in enumerate(lengths)}


def shuffled_events(histories, seed=0):
    """Users and items, each user's items in order, users mixed."""
    random = np.random.default_rng(seed)
    users = random.permutation([user for user, items in histories.items() for _ in items])
    left = {user: iter(items) for user, items in histories.items()}
    return users.tolist(), raw(next(left[user]) for user in users)


def represented(rec, items):
    with torch.no_grad():
        batch = replace(batch_of([items]), user_ids=torch.tensor([-1]))  # none of the log
        return rec.model.encode(batch)[-1]


def error(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("at_once", [1, 7, 30, 10**6])
def test_events_in_any_interleaving_and_portions_are_the_whole_pass(name, at_once, monkeypatch):
    monkeypatch.setattr("recblr.inference.live.AT_ONCE", FEW + 3)  # smaller and larger steps
    rec = made_up(name)
    histories = streams(3 * [1, 2, 5, LONG, 17, 40])
    users, items = shuffled_events(histories)
    live = rec.start()
    for start in range(0, len(users), at_once):
        part = slice(start, start + at_once)
        assert live.update(users[part], items[part]) == 0
    for user, history in histories.items():
        got = live.representations[live.slots[user]]
        assert error(got, represented(rec, history)) < 1e-5
        top = live.recommend([user], 9, exclude_seen=False)
        scores = dict(zip(rec.item_ids, (rec.matrix @ got).tolist()))
        if rec.bias is None:
            assert [scores[item] for item in top.item_ids[0]] == sorted(
                (score for item, score in scores.items() if item), reverse=True
            )[:9]


@pytest.mark.parametrize(
    "name, changes",
    [
        *((name, {}) for name in RECURRENT),
        ("recblr", {"repeat_bias": True}),
        ("recblr", {"direct_conv": 5}),
        ("lrurec", {"direct_conv": 5}),
    ],
)
def test_live_and_recomputed_recommendations_are_the_same(name, changes):
    rec = made_up(name, **changes)
    histories = streams([3, 1, LONGEST, 12])
    live = rec.start((user, raw(items)) for user, items in histories.items())
    users = [*histories, "stranger"]
    given = [(user, raw(histories.get(user, []))) for user in users]
    for options in ({}, {"exclude_seen": False}, {"deny": raw(range(1, 20))}):
        now, anew = live.recommend(users, 6, **options), rec.recommend(given, 6, **options)
        assert now.item_ids.tolist() == anew.item_ids.tolist()
        assert now.sources.tolist() == anew.sources.tolist() == ["model"] * 4 + ["popularity"]
        np.testing.assert_allclose(now.scores, anew.scores, rtol=1e-4, atol=1e-5)


def test_one_event_unknown_items_and_numbers_of_them():
    live = made_up().start()
    assert live.update("ann", "i3") == 0
    assert live.update(["ann", "bob", "cas"], ["nothing", "i4", ""]) == 2
    assert list(live.slots) == ["ann", "bob"] and len(live) == 2
    assert live.update([], []) == 0
    assert live.recommend(["cas"], 2).sources.tolist() == ["popularity"]
    with pytest.raises(ValueError, match="2 users and 1 items: as many of each"):
        live.update(["ann", "bob"], ["i1"])
    for users, items in (("ann", ["i1", "i2", "i3"]), (["ann", "bob"], "i1"), (7, ["i1"])):
        with pytest.raises(ValueError, match="one id and several: give one user and one item"):
            live.update(users, items)
    assert list(live.slots) == ["ann", "bob"]


def test_a_state_reaches_further_back_than_what_recommend_sees():
    rec, history = made_up(), streams([LONG])["u0"]
    live = rec.start([("u", raw(history))])
    _, anew = rec.user_vectors([("u", raw(history))])
    assert error(live.representations[0], represented(rec, history)) < 1e-5
    assert error(torch.from_numpy(anew[0]), represented(rec, history[-LONGEST:])) < 1e-5
    assert error(live.representations[0], torch.from_numpy(anew[0])) > 1e-3


def test_tables_grow_by_doubling_and_a_user_costs_state_and_representation():
    rec = made_up()
    live = rec.start()
    users = [f"u{n}" for n in range(FIRST + 1)]
    live.update("first", "i5")
    before = live.representations[0].clone()
    live.update(users, ["i1"] * len(users))
    assert torch.equal(live.representations[0], before)
    assert [table.shape[d] for table, d in zip(live.tables, live.dims)] == [2 * FIRST] * 4
    default = made_up(d_model=64).start()
    default.update("u", "i1")
    one = sum(t.narrow(d, 0, 1).numel() for t, d in zip(default.tables, default.dims))
    assert 4 * one == 4096  # bytes: 2 layers x (1 + 3) x 128 x 4


def test_repeats_of_seen_items_are_dropped_and_none_is_forgotten():
    live = made_up().start()
    items = [1 + n % 11 for n in range(5 * SLACK)]
    for item in items:
        live.update("u", f"i{item}")
        assert len(live.seen[0]) <= 2 * 11 + SLACK
    assert set(live.recommend(["u"], V - 11).item_ids[0]) == set(raw(range(12, V + 1)))


@pytest.mark.parametrize(
    "name, changes", [*((name, {}) for name in RECURRENT), ("recblr", {"conv1d": False})]
)
def test_states_are_saved_and_loaded_and_go_on(name, changes, tmp_path):
    rec, path = made_up(name, **changes), tmp_path / "states.arrow"
    histories = streams([3, 30, 1])
    users, items = shuffled_events(histories)
    live = rec.start()
    live.update(users[:20], items[:20])
    live.save(path)
    again = rec.start(states=path)
    assert list(again.slots) == list(live.slots)
    for each in (live, again):
        each.update([*users[20:], "new"], [*items[20:], "i2"])
    assert torch.equal(again.representations[:4], live.representations[:4])
    assert again.recommend(users, 4).item_ids.tolist() == live.recommend(users, 4).item_ids.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["states.arrow"]


@pytest.mark.parametrize("name, changes", [("fpmc", {}), ("recblr", {"released": True})])
def test_states_of_nobody_are_saved_too(name, changes, tmp_path):
    rec = made_up(name, **changes)
    rec.start().save(tmp_path / "states.arrow")
    again, live = rec.start(states=tmp_path / "states.arrow"), rec.start()
    assert len(again) == 0
    for each in (again, live):
        each.update("ann", "i1")
    assert torch.equal(again.representations[0], live.representations[0])


def test_states_of_another_model_are_refused_and_rebuilt_from_histories(tmp_path):
    old, new = made_up(seed=0), made_up(seed=1)
    histories = [(user, raw(items)) for user, items in streams([4, 9]).items()]
    path = tmp_path / "states.arrow"
    old.start(histories).save(path)
    with pytest.raises(ValueError, match=r"made by another model; start\(histories\) rebuilds"):
        new.start(states=path)
    rebuilt = new.start(histories)
    got = rebuilt.representations[0]
    assert error(got, represented(new, [int(i[1:]) for i in histories[0][1]])) < 1e-5


def test_states_of_the_same_weights_in_another_model_are_refused(tmp_path):
    clean, released = made_up(), made_up()
    released.about["config"]["model"]["released"] = True
    clean.start([("ann", ["i1"])]).save(tmp_path / "states.arrow")
    with pytest.raises(ValueError, match="made by another model"):
        released.start(states=tmp_path / "states.arrow")


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    live = made_up().start([("ann", ["i1"])])
    monkeypatch.setattr("pyarrow.ipc.new_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        live.save(tmp_path / "states.arrow")
    assert not list(tmp_path.iterdir())


def test_histories_that_are_none_are_refused_and_unknown_items_are_said(caplog):
    rec = made_up()
    for call in (rec.start, rec.user_vectors):
        with pytest.raises(ValueError, match=r"must be \(user, \[item, item, \.\.\]\)"):
            call([("ann", "i12")])
    assert len(rec.start([("ann", ["i1", "nothing", "no"])])) == 1
    assert "2 items of the histories are unknown" in caplog.text


@pytest.mark.parametrize("items", [1, 2])
def test_a_catalogue_of_one_item_or_two(items):
    live = made_up(n_items=items).start([("ann", ["i1"])])
    assert live.recommend(["ann"], 1).item_ids.tolist() == [[f"i{items}"]]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "states.arrow"
    model = made_up()
    model.start((f"u{n}", ["i1"]) for n in range(75)).save(path)
    whole = path.read_bytes()
    for start in range(400, len(whole) - 400, 997):
        path.write_bytes(whole[:start] + b"\xff" * 200 + whole[start + 200 :])
        try:
            model.start(states=path)
        except ValueError as error:
            assert str(error).startswith(f"states={path}: ")


def test_a_file_that_holds_no_states_is_named(tmp_path):
    path = tmp_path / "states.arrow"
    with pytest.raises(FileNotFoundError, match="no such file"):
        made_up().start(states=path)
    path.write_text("no states")
    with pytest.raises(ValueError, match=r"not a file of Live\.save"):
        made_up().start(states=path)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([])):
        pass
    with pytest.raises(ValueError, match="made by another model"):
        made_up().start(states=path)


def test_states_move_to_another_process(tmp_path):
    rec, path = made_up(), tmp_path / "states.arrow"
    live = rec.start()
    live.update(["a", "b", "a"], ["i1", "i2", "i3"])
    live.save(path)
    code = "from made_up_model import made_up; import sys\n"
    code += "live = made_up().start(states=sys.argv[1]); live.update('a', 'i4')\n"
    code += "print(*live.recommend(['a', 'b'], 5).item_ids.ravel())"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True,
        env={"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    live.update("a", "i4")
    assert done.stdout.split() == live.recommend(["a", "b"], 5).item_ids.ravel().tolist()


def test_rounds_have_every_event_once_in_order_and_no_slot_twice():
    slots = np.random.default_rng(0).integers(0, 6, 40)
    parts = list(rounds(slots))
    assert sorted(np.concatenate(parts)) == list(range(40))
    assert all(len(set(slots[part])) == len(part) for part in parts)
    for slot in range(6):
        events = [event for part in parts for event in part if slots[event] == slot]
        assert events == sorted(events)
    assert len(parts) == np.bincount(slots).max()


def test_the_dimension_of_users_is_found_from_the_shapes():
    assert user_dim(torch.zeros(1, 1, 4), torch.zeros(1, 2, 4)) == 1
    assert user_dim(torch.zeros(1, 5), torch.zeros(2, 5)) == 0


class OfTwo(torch.nn.Module):
    """Its step has the number of users of the example in it, once it is traced."""

    def init_state(self, users):
        return torch.zeros(users, 1)

    def step(self, items, state):
        state = state + torch.full((1,), 1.0 / len(items))
        return state, state


def test_a_step_that_no_trace_holds_stays_as_it_is():
    assert not isinstance(made_up().start().step, FlatStep)
    model = OfTwo()
    step = FlatStep(model, model.init_state(1))
    assert traced(step, lambda users: [model.init_state(len(users))]) is step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recblr", "gru4rec", "lrurec"])
def test_streaming_is_the_whole_pass_after_10_000_events(name):
    rec = made_up(name)
    live, history = rec.start(), streams([10_000])["u0"]
    fed = 0
    for stop in (1, 10, 1000, 10_000):
        live.update(["u"] * (stop - fed), raw(history[fed:stop]))
        fed = stop
        assert error(live.representations[0], represented(rec, history[:stop])) < 1e-5


def test_one_user_is_one_user():
    live = made_up().start()
    live.update("ann", "i1")
    assert (
        live.recommend("ann", 2).item_ids.tolist() == live.recommend(["ann"], 2).item_ids.tolist()
    )
