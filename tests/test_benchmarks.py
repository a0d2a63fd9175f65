"""What benchmarks share, and each of them on tiny sizes."""

import csv
import importlib
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from command_line import ROOT, spawn

from recblr import run_folder

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


def test_bench_models_records_speed_and_memory_of_models(timing, tmp_path, monkeypatch, capsys):
    bench = importlib.import_module("bench_models")
    monkeypatch.setattr(bench, "DATA", {"beauty": bench.DATA["beauty"]})
    monkeypatch.setattr(
        bench, "SHAPES", {"beauty": {"n_users": 300, "n_items": 50, "mean_length": 8}}
    )
    out = tmp_path / "speed.csv"
    tiny = ("--steps", "1", "--warmup", "1", "--threads", "1", "--out", str(out))
    bench.main(["--only", "bert4rec", "recblr", *tiny])
    assert figures(table(out)) == {
        ("Beauty shape L50", model, unit)
        for model in ("bert4rec", "recblr")
        for unit in ("targets/cpu_s", "targets/s", "s/epoch", "peak_mb")
    }
    assert {row["what"] for row in table(out)} == {"model"}
    lines = capsys.readouterr().out.splitlines()
    share = {line.split()[0]: line.split()[2] for line in lines if line.startswith(("rec", "bert"))}
    assert share["recblr"] == "1.00"
    assert float(share["bert4rec"]) > 0
    with pytest.raises(SystemExit):
        bench.main(["--beauty", "absent.txt"])
    assert "--beauty absent.txt: no such file" in capsys.readouterr().err


def test_bench_models_keeps_the_figures_before_a_model_that_fails(timing, tmp_path, monkeypatch):
    bench, out = importlib.import_module("bench_models"), tmp_path / "speed.csv"
    result = dict.fromkeys(("targets", "wall_s", "cpu_s", "epoch_targets", "peak_mb"), 1)

    def train(script, job, python, malloc):
        if "model=caser" in job.settings:
            raise RuntimeError("exit code 1: no such window")
        return result

    monkeypatch.setattr(bench, "train", train)
    with pytest.raises(SystemExit, match="Beauty shape L50, caser: exit code 1: no such window"):
        bench.main(["--only", "caser", "recblr", "--out", str(out)])
    assert {row["backend"] for row in table(out)} == {"recblr"}


@pytest.mark.slow
def test_bench_peers_trains_our_sasrec_on_a_log(timing, tmp_path):
    bench, out = importlib.import_module("bench_peers"), tmp_path / "speed.csv"
    log = tmp_path / "log.txt"
    log.write_text("".join(f"{u} " + " ".join("123456789") + "\n" for u in range(1, 60)))
    tiny = ("--steps", "1", "--warmup", "1", "--threads", "1", "--rounds", "1", "--out", str(out))
    bench.main(["--beauty", str(log), "--only", "sasrec", "--malloc", "tuned", *tiny])
    assert figures(table(out)) == {
        ("Beauty L50 D64 malloc=tuned", "sasrec", unit)
        for unit in ("targets/cpu_s", "targets/s", "s/epoch", "peak_mb")
    }


def test_bench_peers_judges_each_of_our_models_by_its_bar(timing, capsys):
    bench = importlib.import_module("bench_peers")
    speeds = {"replay": 10.0, "sasrec": 49.0, "recblr": 80.0, "recblr bf16-mixed": 70.0}
    spreads = {name: {"targets/cpu_s": timing.Spread.of([speed])} for name, speed in speeds.items()}
    for data in bench.DATA.values():
        bench.judge(data, spreads)
    assert capsys.readouterr().out.splitlines() == [
        "  Beauty: recblr 8.0x replay: PASS (at least 8x)",
        "  Beauty: sasrec 4.9x replay: FAIL (at least 5x)",
        "  ML-1M: recblr 8.0x replay: PASS (at least 3x)",
        "  ML-1M: sasrec 4.9x replay: no bar",
    ]


@pytest.fixture
def tiny(timing, tmp_path, monkeypatch):
    """Runs a benchmark in this process, its constants replaced; gives its rows."""

    def run(name: str, *arguments: str, **constants) -> list[dict[str, str]]:
        bench = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(bench, constant, value)
        out = tmp_path / "speed.csv"
        monkeypatch.setattr(
            sys, "argv", [f"{name}.py", "--repeats", "1", "--out", str(out), *arguments]
        )
        bench.main()
        return table(out)

    return run


def figures(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
    assert all(float(row["value"]) > 0 for row in rows)
    return {(row["case"], row["backend"], row["unit"]) for row in rows}


def test_bench_bd_lru_measures_shapes_lengths_and_the_memory_limit(tiny, tmp_path, capsys):
    figure = tmp_path / "figure.png"
    rows = tiny(
        "bench_bd_lru", "--figure", str(figure), SHAPES={"4x8": (4, 8)}, LENGTHS=(800, 8000)
    )
    case = "4x8x128 fwd+bwd"
    assert figures(rows) == {
        *((case, backend, "ms") for backend in ("memcpy", "cpu", "serial")),
        *((f"{n} rows", "memcpy", "ns/row") for n in (800, 8000)),
        *(
            (f"{n} rows, {kind}", "cpu", "ns/row")
            for n in (800, 8000)
            for kind in ("one sequence", "sequences of 8")
        ),
    }
    assert figure.stat().st_size > 0
    assert len(re.findall("PASS|FAIL", capsys.readouterr().out)) == 4


def test_bench_causal_conv_measures_both(tiny):
    rows = tiny("bench_causal_conv", SHAPES={"4x8": (4, 8)})
    case = "4x8x128 fwd+bwd"
    assert figures(rows) == {(case, "cpu", "ms"), (case, "nn.Conv1d", "ms")}


def test_bench_cross_entropy_measures_time_and_memory(tiny, timing):
    here = lambda function, *given: timing.Cost(0, 0, 1, function(*given))  # noqa: E731
    rows = tiny("bench_cross_entropy", CASES={"tiny": (40, 30)}, in_fresh_process=here)
    assert {row["unit"] for row in rows} == {"ms", "extra_mb"}
    assert {row["backend"] for row in rows} >= {"chunked", "F.cross_entropy"}


def test_bench_epoch_names_precision_and_scan_and_counts_checkpoints(tiny, monkeypatch, capsys):
    bench = importlib.import_module("bench_epoch")
    slow, save = 0.3, bench.L.Trainer.save_checkpoint
    monkeypatch.setattr(
        bench.L.Trainer, "save_checkpoint", lambda *given: (time.sleep(slow), save(*given))
    )
    rows = tiny(
        "bench_epoch", "--threads", "1", PRODUCT=64, CASES={"tiny": (64, 30, 8, 0.5)},
        LOG={"n_users": 300, "n_items": 30, "mean_length": 6, "zipf": 0.5},
    )  # fmt: skip
    epoch = "Beauty shape, 2048 targets 32-true"
    assert figures(rows) == {
        ("tiny 32-true", "cpu", "ms"), ("tiny bf16-mixed", "cpu", "ms"),
        ("tiny 32-true", "cpu", "share of mm"),
        (f"{epoch}, without validation", "cpu", "s"), (f"{epoch}, steps alone", "cpu", "s"),
    }  # fmt: skip
    seconds = {row["case"]: float(row["value"]) for row in rows if row["what"] == "epoch"}
    assert seconds[f"{epoch}, without validation"] > slow  # `last` is saved after each epoch


def test_epoch_timer_leaves_the_validation_loop_out(timing):
    timer = importlib.import_module("bench_epoch").EpochTimer()
    for _ in range(2):
        timer.on_train_epoch_start()
        timer.on_validation_start()
        time.sleep(0.2)
        timer.on_validation_end()
        time.sleep(0.02)
    timer.on_train_end()
    assert len(timer.seconds()) == 2 and all(0.02 <= s < 0.2 for s in timer.seconds())


def test_bench_gpu_without_a_device_says_so_and_reports_what_is_compiled(
    timing, tmp_path, monkeypatch, capsys
):
    bench, commands = importlib.import_module("bench_gpu"), []
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--out", str(tmp_path / "speed.csv")])
    bench.main()
    assert "not measured: no CUDA device here" in capsys.readouterr().out
    assert [command[-1] for command in commands] == [
        f"test_{name}:kernels" for name in ("fused", "conv_triton", "scan")
    ]
    assert not (tmp_path / "speed.csv").exists()


def test_bench_gpu_measures_kernels_and_table_5(tiny, timing, monkeypatch, capsys):
    """In Triton's interpreter: what it would measure, not how fast that is."""
    bench = importlib.import_module("bench_gpu")
    cuda = {"is_available": True, "get_device_name": "a GPU", "synchronize": None}
    cuda |= {"reset_peak_memory_stats": None, "memory_allocated": 0, "max_memory_allocated": 1}
    for name, value in cuda.items():
        monkeypatch.setattr(bench.torch.cuda, name, lambda value=value: value)
    sizes = {"SEQUENCES": 1, "LENGTH": 3, "CHANNELS": 4, "ITEMS": 9, "COPIED": 64, "CALLS": 1}
    small = partial(bench.RecBLR, d_model=4, n_layers=1)
    once = lambda call, repeats, wait: timing.measure(call, 1, warmup=0)  # noqa: E731
    rows = tiny("bench_gpu", DEVICE="cpu", RecBLR=small, measure=once, **sizes)
    assert {row["device"] for row in rows} == {"a GPU"}
    kernels = {("bd_lru", "fused"), ("causal_conv", "fused"), ("scan", "triton")}
    assert {
        (row["what"], row["backend"]) for row in rows if row["unit"] == "share of copy"
    } == kernels
    assert {(row["what"], row["backend"]) for row in rows} == kernels | {
        *(("bd_lru", backend) for backend in ("parallel", "serial", "released")),
        *(("table 5", scan) for scan in ("serial", "parallel_sp", "parallel_ep", "fused")),
        ("copy", "device"),
    }
    out = capsys.readouterr().out
    assert len(re.findall("(PASS|FAIL) at least 85%", out)) == 2 * 2 * len(kernels)
    assert len(re.findall("(PASS|FAIL) at least 4x", out)) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_dirty_after_a_change_but_not_after_one_in_results(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("src/code.py", "results/speed.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "src" / "code.py"))
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    assert re.fullmatch("[0-9a-f]{12}", run_folder.commit())
    (tmp_path / "results/speed.csv").write_text("a row")
    assert re.fullmatch("[0-9a-f]{12}", run_folder.commit())
    (tmp_path / "src/code.py").write_text("a line")
    assert re.fullmatch("[0-9a-f]{12}-dirty", run_folder.commit())
