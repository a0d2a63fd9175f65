"""What benchmarks share, and one of them on a small log."""

import csv
import importlib
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, spawn

COLUMNS = ["what", "case", "backend", "unit", "value", "p20", "p80", "threads", "load", "device"]
COLUMNS += ["versions", "commit", "command"]
KEY = ("what", "case", "backend", "unit", "threads", "device")


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "bench_scan.py"), "--repeats", "3"])
    return importlib.import_module("timing")


@pytest.fixture
def bench_data(timing):
    return importlib.import_module("bench_data")


@pytest.fixture
def setting(timing):
    return timing.Setting(1, 0.25, "a CPU, 2 cores", "python 3.11", "abc", "python bench.py")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    return rows


def keys(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in KEY) for row in rows]


def test_a_row_holds_the_figure_and_its_setting(timing, setting, tmp_path):
    path = tmp_path / "results" / "speed.csv"
    timing.record(path, [timing.Row("scan", "8x4", "cpu", "s", 1.0, 0.5, 2.0)], setting)
    assert list(table(path)[0].values()) == [
        "scan", "8x4", "cpu", "s", "1", "0.5", "2", "1", "0.25", "a CPU, 2 cores", "python 3.11",
        "abc", "python bench.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value, text",
    [
        (12345.6, "12350"), (0.000123456, "0.0001235"), (80.0, "80"), (3, "3"), (1e9, "1000000000"),
        (99.996, "100"),
    ],
)  # fmt: skip
def test_values_have_four_significant_digits_and_no_exponent(
    timing, setting, tmp_path, value, text
):
    timing.record(tmp_path / "speed.csv", [timing.Row("a", "b", "c", "s", value)], setting)
    row = table(tmp_path / "speed.csv")[0]
    assert (row["value"], row["p20"], row["p80"]) == (text, "", "")


@pytest.mark.parametrize(
    "other",
    [
        {"what": "x"}, {"case": "x"}, {"backend": "x"}, {"unit": "x"}, {"threads": 2},
        {"device": "x"},
    ],
)  # fmt: skip
def test_a_rerun_replaces_its_row_and_no_row_with_another_key(timing, setting, tmp_path, other):
    path, row = tmp_path / "speed.csv", timing.Row("scan", "8x4", "cpu", "s", 1.0)
    in_row = {key: value for key, value in other.items() if key in row._fields}
    in_setting = {key: value for key, value in other.items() if key in setting._fields}
    timing.record(path, [row], setting)
    timing.record(path, [row._replace(value=5.0, **in_row)], setting._replace(**in_setting))
    timing.record(path, [row._replace(value=2.0)], setting._replace(load=7.0, commit="new"))
    rows = table(path)
    assert sorted(float(row["value"]) for row in rows) == [2.0, 5.0]
    assert {row["load"]: row["commit"] for row in rows} == {"7": "new", "0.25": "abc"}
    assert keys(rows) == sorted(set(keys(rows)))


def test_a_run_that_fails_to_write_leaves_the_file_as_it_was(
    timing, setting, tmp_path, monkeypatch
):
    path, row = tmp_path / "speed.csv", timing.Row("scan", "8x4", "cpu", "s", 1.0)
    timing.record(path, [row], setting)
    before = path.read_bytes()
    monkeypatch.setattr(timing.Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        timing.record(path, [row._replace(value=2.0)], setting)
    assert path.read_bytes() == before


def test_a_file_with_other_columns_is_refused_and_kept(timing, setting, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("what,value\nscan,1\n")
    with pytest.raises(ValueError, match="its columns are"):
        timing.record(path, [timing.Row("scan", "8x4", "cpu", "s", 1.0)], setting)
    assert path.read_text() == "what,value\nscan,1\n"


def test_setting_names_threads_device_versions_and_a_command_from_the_root(timing, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    setting = timing.Setting.now("numpy", "no-such-package")
    assert setting.threads == 3
    assert setting.device.endswith(" cores")
    assert setting.versions.split("; ")[1:] == [
        f"numpy {importlib.import_module('numpy').__version__}"
    ]
    assert setting.command == "python benchmarks/bench_scan.py --repeats 3"
    assert timing.Setting.now(device="a GPU").device == "a GPU"


def test_measure_leaves_the_warm_up_out_and_waits_for_what_a_call_started(timing):
    calls, waits = [], []

    def call():
        calls.append(time.sleep(0.2 if len(calls) < 2 else 0.01))

    spread = timing.measure(call, repeats=5, warmup=2, wait=lambda: waits.append(0))
    assert len(calls) == 7
    assert len(waits) == 7
    assert 0.01 <= spread.p20 <= spread.median <= spread.p80 < 0.2


def test_spread_of_one_value_has_no_percentiles(timing):
    assert timing.Spread.of([3.0]) == (3.0, None, None)
    assert timing.Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 2.0, 5.0)


BURN = """
import time

def burn(seconds, megabytes):
    data = bytearray(b"x") * (megabytes * 10**6)
    while time.process_time() < seconds:
        pass
    return len(data)
"""


def test_cost_of_a_fresh_process_is_its_own(timing, tmp_path, monkeypatch):
    (tmp_path / "burning.py").write_text(BURN)
    monkeypatch.syspath_prepend(str(tmp_path))
    burn = importlib.import_module("burning").burn
    ours = bytearray(b"x") * (300 * 10**6)  # a child's ru_maxrss begins there
    cost = timing.in_fresh_process(burn, 0.8, 100)
    assert cost.result == 100 * 10**6
    assert 0.8 <= cost.cpu_s < 1.6
    assert cost.wall_s > 0.4  # clocks of a shared machine: wall time was seen below CPU time
    assert 100 < cost.peak_mb < len(ours) / 10**6


def test_the_log_is_the_same_each_time_and_its_ids_differ(bench_data, tmp_path):
    counts = [bench_data.write_log(tmp_path / name, 30_000) for name in "ab"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    lines = [line.split("\t") for line in (tmp_path / "a").read_text().splitlines()]
    users, items, times = zip(*lines)
    assert len(lines) == 30_000
    assert counts[0] == (len(set(users)), len(set(items)))
    assert {(len(user), len(item), len(time)) for user, item, time in lines} == {(14, 10, 10)}
    assert all(10**9 <= int(time) < 17 * 10**8 for time in times)


def test_bench_data_replaces_its_figures_and_keeps_others(timing, tmp_path):
    out, scratch = tmp_path / "speed.csv", tmp_path / "scratch"
    now = timing.Setting.now()._replace(threads=1)
    stale = timing.Row("data", "prepare 0.02M rows 0.74 MB tsv", "recblr", "cpu_s", 999.0)
    timing.record(out, [stale, timing.Row("scan", "8x4", "cpu", "s", 999.0)], now)

    arguments = ("--rows", "20000", "--repeats", "1", "--peers", "--out", "speed.csv")
    done = spawn("benchmarks/bench_data", *arguments, "--folder", "scratch", cwd=tmp_path)

    assert done.code == 0, done.err
    assert "its store is the same" in done.out
    assert list(scratch.iterdir()) == []
    rows = table(out)
    assert keys(rows) == sorted(set(keys(rows)))
    assert [row["what"] for row in rows if row["value"] == "999"] == ["scan"]
    assert all(float(row["value"]) > 0 for row in rows)
    assert {(row["backend"], row["unit"]) for row in rows if row["what"] == "data"} == {
        *(("recblr", unit) for unit in ("cpu_s", "wall_s", "peak_mb", "mb")),
        *(("pandas", unit) for unit in ("cpu_s", "wall_s", "peak_mb")),
    }
    prepared = [row for row in rows if row["case"] == stale.case and row["backend"] == "recblr"]
    assert {row["unit"] for row in prepared} == {"cpu_s", "wall_s", "peak_mb"}
    assert prepared[0]["command"].startswith("python benchmarks/bench_data.py --rows 20000")


def test_bench_data_refuses_a_log_that_is_too_small(tmp_path):
    done = spawn("benchmarks/bench_data", "--rows", "10", cwd=tmp_path)
    assert done.code == 2
    assert "--rows 1000" in done.err
