"""`python -m recblr.data`: list, fetch, describe, prepare."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recblr.data import catalog
from recblr.data.__main__ import main

ROWS = [(u, i, 978_300_000 + 90 * i + u) for u in range(6) for i in range(6)]
LOG = "uid;sku;ts\n" + "".join(f"u{u};i{i};{t}\n" for u, i, t in ROWS)
COLUMNS = ("--columns", "user=uid,item=sku,time=ts")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(LOG)
    return tmp_path


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return str(stop.value.code)


def test_list_has_one_line_per_data_set_name_first(here, capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["synthetic", *catalog.names()]
    assert {"ml-1m", "gowalla", "steam", "steam-recbole", "xlong", "custom"} <= set(catalog.names())
    (gowalla,) = [line for line in lines if line.startswith("gowalla")]
    assert "64,115 / 164,532 / 2,018,421" in gowalla and "to download" in gowalla
    (xlong,) = [line for line in lines if line.startswith("xlong")]
    assert "unknown" in xlong and "needs data.path" in xlong


def test_describe_as_json_holds_every_figure(here, capsys):
    main(["describe", "log.csv", *COLUMNS, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["raw"] == facts["prepared"] == {"users": 6, "items": 6, "interactions": 36}
    assert facts["rounds"] == [facts["prepared"]] and facts["format"] == "table"
    assert (facts["repeated"], facts["tied"], facts["unreadable"]) == (0.0, 0.0, 0)
    assert facts["length"] == {"average": 6.0, "longest": 6} and facts["lengths"] == {"5-9": 6}
    assert set(facts["test_items_moved"]) == {"recbole_float32", "item_id"}
    assert facts["test_items_moved"]["item_id"] == 0.0
    assert len(facts["split_hash"]) == 64
    assert not (here / "data").exists()  # describing keeps nothing


def test_describe_counts_repeats_ties_and_moved_test_items(here, capsys):
    rows = [("a", "x", 100), ("a", "y", 100), ("a", "x", 90), ("b", "x", 1), ("b", "y", 2)]
    text = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    (here / "log.csv").write_text(text + "b,a,2\n")
    main(["describe", "log.csv", "--min", "1", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["repeated"] == pytest.approx(1 / 6) and facts["tied"] == pytest.approx(4 / 6)
    assert facts["test_items_moved"] == {"recbole_float32": 0.0, "item_id": 0.5}


def test_describe_for_people(here, capsys):
    main(["describe", "log.csv", *COLUMNS, "--order", "recbole_float32"])
    out = capsys.readouterr().out
    for part in ("format table", "prepared", "5-9", "####", "data.order=exact would change"):
        assert part in out


def test_describe_of_a_name_stands_beside_what_is_expected(here, capsys):
    rows = "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in ROWS)
    (here / "u.data").write_text(rows)
    main(["describe", "ml-100k", "--path", "u.data"])
    out = capsys.readouterr().out
    assert "format movielens" in out and "1,349" in out
    assert "split " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("describe", "absent.csv"),
            "'absent.csv': no such file, and no data set; valid: amazon-beauty",
        ),
        (("describe", "log.csv"), "no column 'user_id' (found: uid, sku, ts)"),
        (("describe", "log.csv", *COLUMNS, "--min", "7"), "data.min_interactions=7: nothing is"),
        (("describe", "log.csv", "--path", "x"), "--path=x: 'log.csv' is no data set's name"),
        (("fetch", "movielens"), "data=movielens: no such data set; valid: amazon-beauty"),
        (("fetch", "yelp"), "data.path is not set: yelp is not downloaded for you"),
        (("prepare", "xlong"), "data.path is not set: xlong is not downloaded for you"),
    ],
)
def test_errors_are_one_line(here, arguments, said):
    text = refusal(*arguments)
    assert text.startswith("error: ") and said in text and "\n" not in text


def test_wrong_columns_are_a_usage_error(here, capsys):
    for columns in ("uid", "user=", "who=uid", "user=a,user=b"):
        with pytest.raises(SystemExit) as stop:
            main(["describe", "log.csv", "--columns", columns])
        assert (
            stop.value.code == 2 and "expected user=..,item=..,time=.." in capsys.readouterr().err
        )


def test_prepare_fills_the_cache_that_training_reads(here, capsys):
    main(["prepare", "log.csv", *COLUMNS])
    assert "split " in capsys.readouterr().out
    (place,) = (here / "data" / "cache").iterdir()
    columns = {"user": "uid", "item": "sku", "time": "ts"}
    log = catalog.entry("custom", path="log.csv", columns=columns, folder="data")
    assert log.load().split_hash == json.loads((place / "about.json").read_text())["split_hash"]
    assert len(list((here / "data" / "cache").iterdir())) == 1


def test_listing_needs_neither_torch_nor_lightning():
    code = "import sys, recblr.data.__main__ as m; m.main(['list'])\n"
    code += "assert not {'torch', 'lightning'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
