"""From a file and a recipe to a prepared log."""

from __future__ import annotations

import hashlib
import logging
import re

import hydra
import pytest
from batches import histories

from recblr.data import catalog
from recblr.data.catalog import Card, LogFile

HEADER = "user_id,item_id,timestamp\n"
THREE_ROUNDS = ["a,x", "a,y", "b,x", "b,y", "c,x", "c,y", "d,x", "d,z"]  # with k = 2


@pytest.fixture
def log_file(tmp_path):
    """log_file(**arguments) -> a LogFile named `mine`; its cache has a folder of its own."""
    return lambda **arguments: LogFile(name="mine", folder=str(tmp_path / "data"), **arguments)


def test_log_is_read_filtered_and_ordered(write, log_file):
    path = write(HEADER + "b,y,2\nb,x,1\na,x,1\na,y,2\na,rare,3\n")
    store = log_file(path=path, min_interactions=2).load()
    assert histories(store) == {"b": ["x", "y"], "a": ["x", "y"]}
    assert store.order == "exact"


def test_users_with_one_or_two_events_stay_without_a_filter(write, log_file):
    store = log_file(path=write("1 5\n2 5 6\n"), min_interactions=1).load()
    assert histories(store) == {"1": ["5"], "2": ["5", "6"]}


def test_statistics_are_logged_with_each_round(write, caplog, log_file):
    path = write(HEADER + "".join(f"{row},1600000000\n" for row in [*THREE_ROUNDS, "a,x"]))
    with caplog.at_level(logging.INFO, "recblr"):
        log_file(path=path, min_interactions=2, repeats="last").load()
    for part in (
        r"mine: format table +users +items +interactions",
        r"mine: raw +4 +3 +9",
        r"mine: prepared +3 +2 +6",
        r"mine: 1 repeats dropped before the k-core",
        r"mine: k-core, .* after each of 3 rounds: 7 / 4 / 2; 6 / 3 / 2; 6 / 3 / 2",
        r"mine: length: average 2.0, median 2, longest 2; order exact",
        r"mine: times: seconds, 2020-09-13T12:26:40 to 2020-09-13T12:26:40 UTC",
    ):
        assert re.search(part, caplog.text), part


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([1600000000123, 1600000001123], "times: milliseconds, 2020-09-13T12:26:40 to"),
        ([1600000000, 4102444800], "1 times lie in the future"),
        ([-5, 1600000000], "1 times are negative"),
    ],
)
def test_odd_times_are_said_and_sorted_as_they_are(write, caplog, log_file, times, said):
    path = write(HEADER + f"a,late,{times[1]}\na,early,{times[0]}\n")
    with caplog.at_level(logging.INFO, "recblr"):
        store = log_file(path=path, min_interactions=1).load()
    assert said in caplog.text
    assert histories(store) == {"a": ["early", "late"]}


def test_mixed_units_and_wild_times_are_said(write, caplog, log_file):
    times = [*range(1600000000, 1600000005), 1600000000123, 10**30]
    lines = "".join(f"a,i{n},{time}\n" for n, time in enumerate(times))
    with caplog.at_level(logging.INFO, "recblr"):
        log_file(path=write(HEADER + lines), min_interactions=1).load()
    assert "2020-09-13T12:26:40 to 1e+30 s UTC" in caplog.text
    assert "2 times lie far from the others: are units mixed?" in caplog.text


def test_temporal_split_says_where_it_cuts(write, caplog, log_file):
    rows = "".join(f"a,i{n},{1600000000 + 86400 * n}\n" for n in range(11))
    with caplog.at_level(logging.INFO, "recblr"):
        log_file(path=write(HEADER + rows), min_interactions=1, split="temporal").load()
    said = "temporal split: 9 events up to 2020-09-21T12:26:40 train; 1 users have a validation"
    assert said in caplog.text and "up to 2020-09-22T12:26:40, 1 a test target later" in caplog.text


def test_empty_path_is_not_the_working_directory(log_file):
    with pytest.raises(ValueError, match=r"data.path is empty: name a file or a folder"):
        log_file(path="").load()


def test_users_are_drawn_the_same_whatever_the_order_of_rows(write, log_file):
    rows = [f"u{u},i{i},{i}\n" for u in range(20) for i in range(3)]
    draws = []
    for lines in (rows, rows[::-1]):
        store = log_file(path=write(HEADER + "".join(lines)), min_interactions=1, users=7).load()
        draws.append(sorted(store.user_ids))
    assert draws[0] == draws[1] and len(draws[0]) == 7
    store = log_file(path=write(HEADER + "".join(rows)), min_interactions=1, users=99).load()
    assert store.n_users == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cut": ["a", "b"]}, r"data.cut=.*: expected two rising quantiles"),
        ({"cut": [0.9, 0.8]}, r"data.cut=\[0.9, 0.8\]: expected two rising quantiles"),
        ({"min_interactions": -1}, r"data.min_interactions=-1: must be 0 or more"),
        ({"users": 0}, r"data.users=0: must be 1 or more"),
    ],
)
def test_values_out_of_range_are_refused(log_file, arguments, said):
    with pytest.raises(ValueError, match=said):
        log_file(**arguments)


def test_unknown_split_is_refused(write, log_file):
    with pytest.raises(ValueError, match=r"data.split=random: expected leave_one_out or temporal"):
        log_file(path=write("1 5 6\n"), min_interactions=1, split="random").load()


def test_raw_counts_are_compared_with_the_expected_ones_of_a_download(tmp_path, caplog):
    (tmp_path / "log.csv").write_text("1 5 6\n2 5 6\n")
    card = Card(before={"items": 2, "interactions": 5})
    url = "http://127.0.0.1:9/log.csv"
    LogFile(name="mine", urls=[url], folder=str(tmp_path), min_interactions=1, card=card).load()
    assert "mine: raw: 4 interactions, expected 5" in caplog.text
    caplog.clear()
    own = LogFile(
        name="mine", path=str(tmp_path / "log.csv"), folder=str(tmp_path), min_interactions=1,
        card=card,
    )  # fmt: skip
    own.load()
    assert "expected" not in caplog.text


@pytest.mark.parametrize("name", catalog.names())
def test_entry_is_what_the_configuration_composes(name):
    with hydra.initialize_config_dir(str(catalog.CONF.parent), version_base="1.3"):
        composed = hydra.compose("train", [f"data={name}", "paths.data=there"])
    log = hydra.utils.instantiate(composed.data, _convert_="all")
    assert catalog.entry(name, folder="there") == log


def test_temporal_split_of_a_file_without_times_is_refused(write, log_file):
    with pytest.raises(ValueError, match=r"data.split=temporal: needs times"):
        log_file(path=write("1 5 6\n"), min_interactions=1, split="temporal").load()


def test_counts_other_than_expected_are_a_warning(write, caplog, log_file):
    path, expected = write("1 5 6\n2 5 6\n"), {"users": 2, "items": 2, "interactions": 4}
    log_file(path=path, min_interactions=2, card=Card(after=expected)).load()
    assert "expected" not in caplog.text
    log_file(path=path, min_interactions=2, card=Card(after={**expected, "users": 3})).load()
    (warning,) = [r for r in caplog.records if "expected" in r.getMessage()]
    assert warning.getMessage() == "mine: prepared: 2 users, expected 3"


def test_path_that_is_not_set_names_the_source():
    with pytest.raises(ValueError) as error:
        LogFile(name="ml-100k", card=Card(source="https://grouplens.org")).load()
    text = str(error.value)
    assert text.startswith("data.path is not set: ml-100k")
    assert text.endswith("get it from https://grouplens.org, then data.path=FILE")


def test_repeats_that_empty_the_log_are_an_error_with_counts(write, log_file):
    path = write(HEADER + "a,x,1\na,x,2\n")
    assert len(log_file(path=path, min_interactions=2).load().items) == 2
    with pytest.raises(ValueError, match=r"nothing is left .rows / users / items after each round"):
        log_file(path=path, min_interactions=2, repeats="last").load()


@pytest.mark.parametrize("order", ["exact", "recbole_float32", "item_id"])
def test_sequence_files_refuse_an_order_by_time(write, order, log_file):
    path = write("1 5 6\n")
    with pytest.raises(ValueError, match=f"data.order={order}: .* has no times"):
        log_file(path=path, min_interactions=1, order=order).load()


def test_sequence_files_keep_their_order_or_shuffle_it(write, log_file):
    path = write("1 " + " ".join(map(str, range(30, 0, -1))) + "\n")
    plain = log_file(path=path, min_interactions=1).load()
    mixed = log_file(path=path, min_interactions=1, order="shuffled").load(seed=3)
    assert plain.order == "file" and mixed.order == "shuffled"
    assert histories(plain)["1"] == [str(i) for i in range(30, 0, -1)]
    assert histories(mixed)["1"] != histories(plain)["1"]


def test_known_file_has_its_orders_name_and_stays_in_file_order(write, log_file):
    path = write("1 9 5 7\n")
    with open(path, "rb") as file:
        known = {hashlib.md5(file.read()).hexdigest(): "item_id"}
    card = Card(known_order=known)
    for order in ("auto", "item_id"):
        store = log_file(path=path, min_interactions=1, order=order, card=card).load()
        assert store.order == "item_id" and histories(store) == {"1": ["9", "5", "7"]}
    card = Card(known_order={"0" * 32: "item_id"})
    store = log_file(path=path, min_interactions=1, card=card).load()
    assert store.order == "file"


def test_same_file_gives_the_same_store(write, log_file):
    path = write(HEADER + "".join(f"{u},{i},{(u * i) % 7}\n" for u in range(9) for i in range(9)))
    one, two = (log_file(path=path).load() for _ in range(2))
    assert one.items.tolist() == two.items.tolist()
    assert one.item_ids.tolist() == two.item_ids.tolist()
