"""recommend.py as a user types it, on runs made here."""

import csv
import json
import random
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from command_line import ROOT, SMOKE, invoke, run_folders, spawn, write_log

from recblr.inference import Recommender

K = 10


class Trained(NamedTuple):
    cwd: Path
    checkpoint: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return train(tmp_path_factory.mktemp("trained"))


def train(cwd: Path, *arguments: str) -> Trained:
    write_log(cwd / "log.inter")
    done = invoke("train", *SMOKE, *arguments, cwd=cwd)
    assert done.code == 0, done.err
    (folder,) = run_folders(cwd / "runs")
    return Trained(cwd, f"ckpt_path={folder}/checkpoints/best.ckpt")


def recommend(trained, *arguments, start=invoke):
    done = start("recommend", trained.checkpoint, *arguments, cwd=trained.cwd)
    assert done.code == 0, done.err
    return done.out


def rows_of(path: Path) -> dict[str, list[dict[str, str]]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {user: list(of_user) for user, of_user in groupby(rows, lambda row: row["user_id"])}


def made_up_histories(users: int) -> dict[str, list[str]]:
    """With ids that no log has, repeats, and users without any item."""
    draw = random.Random(0)
    histories = {}
    for user in range(users):
        items = [f"i{draw.randrange(25)}" for _ in range(draw.choice((0, 1, 2, 5, 12, 70)))]
        items += ["no such item"] * draw.choice((0, 0, 1, 3)) + items[:1] * draw.choice((0, 2))
        histories[f"new{user}"] = draw.sample(items, len(items))
    return histories


@pytest.mark.parametrize("start", [invoke, pytest.param(spawn, marks=pytest.mark.slow)])
def test_a_thousand_made_up_histories_get_k_items_each(trained, start):
    histories = made_up_histories(1000)
    lines = [json.dumps({"user": user, "items": items}) for user, items in histories.items()]
    (trained.cwd / "histories.jsonl").write_text("\n".join(lines))
    out = recommend(trained, "input=histories.jsonl", "output=top.csv", "k=5", start=start)
    rows = rows_of(trained.cwd / "top.csv")
    known = {u: [i for i in items if i != "no such item"] for u, items in histories.items()}
    assert list(rows) == list(histories)
    for user, of_user in rows.items():
        assert [row["rank"] for row in of_user] == ["1", "2", "3", "4", "5"]
        assert {row["source"] for row in of_user} == {"model" if known[user] else "popularity"}
        items = [row["item_id"] for row in of_user]
        assert len(set(items)) == 5
        if len(set(known[user])) <= 20:
            assert not set(items) & set(known[user])
    empty = sum(not items for items in known.values())
    skipped = sum(map(len, histories.values())) - sum(map(len, known.values()))
    assert f"1,000 users, {empty:,} of them by popularity" in out
    assert f"{skipped:,} unknown items" in out
    assert "not recommended (exclude_seen=true)" in out
    assert "5,000 rows" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_memory_does_not_grow_with_the_users(trained, tmp_path, kind):
    peaks = []
    for users in (10_000, 100_000):  # 2 MB and more than one part of a table
        path = tmp_path / f"histories.{kind}"
        with path.open("w") as file:
            file.write("user_id,item_id\n" if kind == "csv" else "")
            for user in range(users):
                items = [f"i{(user + step) % 25}" for step in range(20)]
                if kind == "csv":
                    file.writelines(f"u{user},{item}\n" for item in items)
                else:
                    file.write(json.dumps({"user": f"u{user}", "items": items}) + "\n")
        arguments = [
            "recommend.py",
            trained.checkpoint,
            f"input={path}",
            f"output={tmp_path}/a.csv",
        ]
        code = f"""
import resource, runpy, sys
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split("peak ")[1]) / 1024)  # MB
    assert peaks[1] - peaks[0] < 100, peaks  # the larger table as lists of text is over 200


def test_all_users_of_the_log_are_recommended_for_what_the_api_says(trained):
    out = recommend(trained, "input=log", "output=top.parquet", "exclude_seen=false", "k=3")
    found = pd.read_parquet(trained.cwd / "top.parquet")
    assert "60 users, 0 of them by popularity" in out and "recommended too" in out
    log = pd.read_csv(trained.cwd / "log.inter", sep="\t", names=["user", "item", "time"], header=0)
    histories = {user: rows.item.tolist() for user, rows in log.groupby("user", sort=False)}
    run = Path(trained.checkpoint.removeprefix("ckpt_path=")).parents[1]
    expected = Recommender.load(run).recommend(histories.items(), 3, exclude_seen=False).frame()
    expected = expected.set_index("user_id").loc[found.user_id.unique()].reset_index()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-4)


def test_lists_columns_and_batches_reach_the_recommender(trained):
    (trained.cwd / "events.csv").write_text("uid,sku,when\na,i1,2\na,i2,1\nb,i3,3\n")
    (trained.cwd / "allow.txt").write_text("\n".join(f"i{n}" for n in (1, 2, 3, 4, 5, 99)))
    (trained.cwd / "deny.txt").write_text("i5\n")
    columns = ("columns.user=uid", "columns.item=sku", "columns.time=when")
    lists = ("allow=allow.txt", "deny=deny.txt", "k=3", "batch_size=1", "scan=reference")
    out = recommend(trained, "input=events.csv", "output=top.jsonl", *columns, *lists)
    rows = [json.loads(line) for line in (trained.cwd / "top.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == ["a"] * 3 + ["b"] * 3
    assert {rows[0]["item_id"], rows[1]["item_id"]} == {"i3", "i4"}  # i1 and i2 are seen
    assert rows[2]["item_id"] in ("i1", "i2")
    assert {row["item_id"] for row in rows[3:]} == {"i1", "i2", "i4"}
    assert "1 of 7 ids of allow and deny are unknown" in out
    assert "1 users have met all but fewer than k items" in out
    assert "scan=reference runs as reference" in out


def test_who_has_no_history_gets_the_items_of_most_training_events(trained):
    path = Path(trained.checkpoint.removeprefix("ckpt_path="))
    counts = torch.load(path, weights_only=True)["recblr"]["item_counts"]
    assert len(counts) == 26 and sum(counts) == 602 - 2 * 60 and counts[0] == 0
    (trained.cwd / "empty.jsonl").write_text('{"user": "a", "items": []}')
    recommend(trained, "input=empty.jsonl", "output=top.csv")
    (of_user,) = rows_of(trained.cwd / "top.csv").values()
    assert [float(row["score"]) for row in of_user] == sorted(counts)[::-1][:K]


@pytest.mark.parametrize("model", ["fpmc", "caser"])
def test_a_model_with_a_vector_per_user_says_who_has_none(tmp_path, model):
    trained = train(tmp_path, f"model={model}")
    lines = [{"user": user, "items": ["i1", "i2"]} for user in ("u0", "stranger")]
    (tmp_path / "histories.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = recommend(trained, "input=histories.jsonl", "output=top.csv", "k=20")
    assert f"{model} has no vector for 1 users" in out
    own, stranger = (
        {row["item_id"]: row["score"] for row in rows}
        for rows in rows_of(tmp_path / "top.csv").values()
    )
    assert own != stranger
    assert "no vector" not in recommend(trained, "input=log", "output=top.csv")


WRONG = [
    (("input=absent.csv", "output=top.csv"), "input=absent.csv: no such file"),
    (("input=top.csv", "output=top.csv"), "output=top.csv: is the input"),
    (("input=log",), "output is not set; --help shows how"),
    (("input=log", "output=top.xlsx"), "output=top.xlsx: must end in one of .csv"),
    (("input=log", "output=top.csv", "k=26"), "k=26: must be in 1..25, the candidates"),
    (("input=log", "output=top.csv", "k=many"), "k='many': must be an integer"),
    (("input=log", "output=top.csv", "allow=absent"), "allow=absent: no such file"),
    (("input=log", "output=top.csv", "batch_size=0"), "batch_size=0: must be 1 or more"),
    (("input=log", "output=top.csv", "exclude=true"), "exclude: no such key"),
    (("input=log", "output=top.csv", "data.path=absent"), "data.path='absent': no such file"),
    (("input=log", "output=top.csv", "scan=quick"), "scan='quick'"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_no_file(trained, arguments, message):
    before = set(trained.cwd.iterdir())
    done = invoke("recommend", trained.checkpoint, *arguments, cwd=trained.cwd)
    assert done.code == 1
    assert message in done.err.replace(f"{trained.cwd}/", "") and done.err.count("\n") == 1
    assert set(trained.cwd.iterdir()) == before


def test_help_shows_commands_and_settings(tmp_path):
    done = invoke("recommend", "--help", cwd=tmp_path)
    assert done.code == 0
    assert "input=log output=top.parquet" in done.out and "exclude_seen: true" in done.out
