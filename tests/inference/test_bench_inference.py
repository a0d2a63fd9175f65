"""The benchmark of inference at tiny sizes: what it would measure, not how fast that is."""

import csv
import importlib
import re
import sys

import pytest
from command_line import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "bench_inference.py")])
    module = importlib.import_module("bench_inference")
    sizes = {"ITEMS": 40, "LENGTHS": (1, 10, 30), "ANEW": 10, "TIMED": 3, "EVENTS": 12}
    sizes |= {"STREAMED": 30, "AT_ONCE": 20}
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)
    return module


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_measures_streams_events_and_batches(bench, tmp_path, monkeypatch, capsys):
    out, figure, lengths = tmp_path / "speed.csv", tmp_path / "figure.png", (1, 10, 30)
    checked, whole_pass = [], bench.whole_pass

    def noted(rec, events):
        checked.append(len(events))
        return whole_pass(rec, events)

    monkeypatch.setattr(bench, "whole_pass", noted)
    monkeypatch.setattr(bench, "TIMED", 12)  # more than from one length to the next
    parts = ("--only", "streams", "event", "batches", "--threads", "1")
    bench.main([*parts, "--out", str(out), "--figure", str(figure)])
    assert {(row["case"], row["backend"], row["unit"]) for row in rows(out)} == {
        *((f"next event after {n}", name, "us") for n in lengths for name in bench.CLASSES),
        *((f"error after {n} events", name, "share") for n in lengths for name in bench.CLASSES),
        *((f"next event after {n}", "sasrec", "us") for n in (1, 10)),
        *(("one event and top 10 of 40", "recblr", f"ms {q}") for q in ("p50", "p99")),
        *(("updates of 20 events", name, "events/s") for name in bench.CLASSES),
    }  # fmt: skip
    assert figure.stat().st_size > 0
    printed = capsys.readouterr().out
    # Exact at each length and after the event that was timed there, the last of 12 turns.
    assert checked == [2, 11, 31] * 3
    assert len(re.findall("PASS at most 1e-05", printed)) == 9
    assert len(re.findall("PASS|FAIL", printed)) == 9 + 3 + 1 + 1


def test_memory_of_a_user_is_the_state_the_representation_and_little_more(bench):
    used, state, representation = bench.in_fresh_process(bench.states_of, 50_000).result
    assert (state, representation) == (4096, 256)
    assert 1 < used / (state + representation) < 1.7


def test_users_are_measured_beside_the_peer_and_the_epoch(bench, tmp_path, monkeypatch, capsys):
    def train(script, job, python, malloc):
        result = {"cpu_s": 6.0 if "rectools" in script else 2.0, "wall_s": 1.0, "peak_mb": 5.0}
        result |= {"versions": script, "evaluation_s": 3.0}
        epoch = {"targets": 10, "epoch_targets": 40, "steps": job.steps}
        return result | (epoch if script == "ours.py" else {})

    log, out = tmp_path / "log.txt", tmp_path / "speed.csv"
    log.write_text("".join(f"{u} " + " ".join("123456789") + "\n" for u in range(1, 60)))
    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "environment", lambda peer, folder: folder / peer)
    bench.main(["--only", "users", "--beauty", str(log), "--out", str(out), "--rounds", "2"])
    assert "3.0x fewer CPU s PASS" in capsys.readouterr().out
    assert {(row["case"], row["backend"], row["unit"], row["versions"]) for row in rows(out)} == {
        *(
            ("top 10 of 59 users", name, unit, f"recommend_{script}.py")
            for name, script in (("recblr", "ours"), ("rectools", "rectools"))
            for unit in ("cpu_s", "wall_s", "peak_mb")
        ),
        ("evaluation of the test split", "recblr", "s", "recommend_ours.py"),
        ("epoch beside the evaluation", "recblr", "s", "recommend_ours.py"),
    }


@pytest.mark.slow
def test_our_part_runs_on_a_log(bench, tmp_path, monkeypatch):
    log, out = tmp_path / "log.txt", tmp_path / "speed.csv"
    histories = {u: [str(1 + (u + j) % 30) for j in range(9)] for u in range(1, 60)}
    log.write_text("".join(f"{u} {' '.join(items)}\n" for u, items in histories.items()))
    real = bench.train
    peer = {"recommend_rectools.py": "recommend_ours.py"}
    monkeypatch.setattr(bench, "environment", lambda peer, folder: sys.executable)
    monkeypatch.setattr(bench, "train", lambda script, *rest: real(peer.get(script, script), *rest))
    tiny = ("--rounds", "1", "--seconds", "1", "--warmup", "1", "--threads", "1")
    bench.main(["--only", "users", "--beauty", str(log), "--out", str(out), *tiny])
    assert len(rows(out)) == 8 and all(float(row["value"]) > 0 for row in rows(out))
