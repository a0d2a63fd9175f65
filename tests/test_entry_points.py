"""train.py and evaluate.py as a user types them, on small logs made here."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
import yaml
from command_line import (
    ON_LOG,
    ROOT,
    SMOKE,
    Outcome,
    files_below,
    invoke,
    run_folders,
    spawn,
    write_log,
)

from recblr.ops.backends import BACKENDS
from recblr.run_folder import METRICS, RunFolder

FILES = {
    "config.yaml", "environment.json", "metrics.csv", "test_metrics.json", "floors.json",
    "test_ranks.parquet", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "run.log", "README.md",
}  # fmt: skip
MEASURED = ("seconds", "targets_per_s", "memory")  # columns that no seed fixes


def epochs(folder: Path) -> list[dict[str, str]]:
    """metrics.csv as text, without what a clock measured."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {key: row[key] for key in row if not any(part in key for part in MEASURED)}
            for row in csv.DictReader(file)
        ]


def table_row(output: str, model: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(f"│ {model} "))


def expected_metrics(ranks: pd.DataFrame) -> dict[str, float]:
    """The mean over users and over every place that the target can take among its equals."""
    sums = dict.fromkeys(METRICS, 0.0)
    for higher, equal in zip(ranks.higher.tolist(), ranks.equal.tolist()):
        for place in range(higher + 1, higher + equal + 2):
            gains = {"hr": 1.0, "ndcg": 1 / math.log2(place + 1), "mrr": 1 / place}
            for metric in METRICS:
                name, k = metric.split("@")
                sums[metric] += gains[name] * (place <= int(k)) / (equal + 1)
    return {metric: total / len(ranks) for metric, total in sums.items()}


class Trained(NamedTuple):
    folder: Path
    cwd: Path
    outcome: Outcome

    @property
    def metrics(self) -> dict[str, float]:
        return RunFolder(self.folder).read_json("test_metrics.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    """One smoke run, in a process of its own."""
    cwd = tmp_path_factory.mktemp("trained")
    write_log(cwd / "log.inter")
    outcome = spawn("train", *SMOKE, cwd=cwd)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(cwd / "runs")
    return Trained(folder, cwd, outcome)


@pytest.fixture
def copied(trained, tmp_path) -> Trained:
    """The same run in a folder that a test may change."""
    shutil.copytree(trained.cwd, tmp_path / "copy")
    folder = tmp_path / "copy" / trained.folder.relative_to(trained.cwd)
    return Trained(folder, tmp_path / "copy", trained.outcome)


def beside_the_cache(folder: Path) -> set[str]:
    return {name for name in files_below(folder) if not name.startswith("data/cache/custom-")}


@pytest.fixture
def log_here(tmp_path) -> Path:
    write_log(tmp_path / "log.inter")
    return tmp_path


def test_smoke_run_writes_every_file_of_the_run_folder_and_none_beside_it(trained):
    assert files_below(trained.folder) == FILES
    inside = {str((trained.folder / name).relative_to(trained.cwd)) for name in FILES}
    assert beside_the_cache(trained.cwd) == inside | {"log.inter"}
    name = trained.folder.relative_to(trained.cwd / "runs").parts
    assert name[:2] == ("custom", "recblr") and name[2].startswith("s2024-")


def test_smoke_run_is_marked_wherever_its_figures_are(trained):
    assert trained.metrics["smoke"] is True
    assert yaml.safe_load((trained.folder / "config.yaml").read_text())["smoke"] is True
    assert "smoke run" in (trained.folder / "README.md").read_text().lower()
    assert "SMOKE RUN" in trained.outcome.out


def test_run_says_what_was_read_and_where_the_run_is_and_nothing_on_stderr(trained):
    assert re.search(r"prepared +60 +25 +602\n", trained.outcome.out)
    assert str(trained.folder.relative_to(trained.cwd)) in trained.outcome.out
    assert trained.outcome.err == ""


def test_ranks_hold_raw_ids_and_reproduce_the_metrics(trained):
    ranks = pd.read_parquet(trained.folder / "test_ranks.parquet")
    assert list(ranks) == ["user_id", "item_id", "higher", "equal"]
    assert set(ranks.user_id) == {f"u{user}" for user in range(60)} and len(ranks) == 60
    assert all(type(item) is str and item.startswith("i") for item in ranks.item_id)
    assert ranks.higher.dtype == ranks.equal.dtype == "int32"
    assert trained.metrics["users"] == 60
    for metric, value in expected_metrics(ranks).items():
        assert trained.metrics[metric] == pytest.approx(value, abs=1e-12)


def test_environment_names_versions_commit_threads_and_scan(trained):
    environment = json.loads((trained.folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert {"python", "platform", "cpu", "cores", "gpu"} <= environment.keys()
    assert environment["threads"] == 1
    assert environment["scan"] in BACKENDS  # what auto chose, not "auto"
    assert bool(environment["commit"]) == (ROOT / ".git").exists()
    assert environment["command"].endswith(" ".join(SMOKE))


@pytest.mark.parametrize("start", [invoke, pytest.param(spawn, marks=pytest.mark.slow)])
def test_evaluate_repeats_the_test_metrics_to_the_last_digit_from_anywhere(copied, tmp_path, start):
    checkpoint = copied.folder / "checkpoints" / "best.ckpt"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outcome = start("evaluate", f"ckpt_path={checkpoint}", cwd=elsewhere)
    assert (outcome.code, outcome.err) == (0, "")
    again = json.loads((copied.folder / "evaluate_test.json").read_text())
    before = copied.metrics
    assert {key: again[key] for key in before} == before
    for row in ("popularity", "markov", "recblr"):
        assert table_row(outcome.out, row) == table_row(copied.outcome.out, row)
    assert files_below(copied.folder) == FILES | {"evaluate_test.json"}
    assert not any(elsewhere.iterdir())


def test_evaluate_of_val_gives_the_metrics_of_the_best_epoch(copied):
    outcome = invoke("evaluate", "ckpt_path=checkpoints/best.ckpt", "split=val", cwd=copied.folder)
    assert outcome.code == 0, outcome.err
    again = json.loads((copied.folder / "evaluate_val.json").read_text())
    best = max(epochs(copied.folder), key=lambda row: float(row["val/ndcg@10"]))
    assert {m: again[m] for m in METRICS} == {m: float(best[f"val/{m}"]) for m in METRICS}
    assert again["ndcg@10"] != copied.metrics["ndcg@10"]


def test_evaluate_without_the_history_ranks_no_new_target_lower_and_misses_the_others(copied):
    checkpoint = copied.folder / "checkpoints" / "best.ckpt"
    outcome = invoke("evaluate", f"ckpt_path={checkpoint}", "mask_history=true", cwd=copied.cwd)
    assert outcome.code == 0, outcome.err
    masked = json.loads((copied.folder / "evaluate_test_mask_history=true.json").read_text())
    log = pd.read_csv(copied.cwd / "log.inter", sep="\t", dtype=str)
    times = log.groupby(["user_id:token", "item_id:token"]).size()
    ranks = pd.read_parquet(copied.folder / "test_ranks.parquet")
    new = ranks[[times[key] == 1 for key in zip(ranks.user_id, ranks.item_id)]]
    assert 0 < len(new) < len(ranks)
    share = len(new) / len(ranks)
    least = {metric: share * value for metric, value in expected_metrics(new).items()}
    assert all(masked[metric] >= least[metric] - 1e-12 for metric in METRICS)
    assert masked["ndcg@10"] > least["ndcg@10"]
    assert "history not ranked" in outcome.out


def test_evaluate_with_another_scan_gives_the_same_ranking(copied):
    checkpoint = copied.folder / "checkpoints" / "best.ckpt"
    outcome = invoke("evaluate", f"ckpt_path={checkpoint}", "scan=serial", cwd=copied.cwd)
    assert outcome.code == 0, outcome.err
    assert "scan=serial runs as serial" in outcome.out
    again = json.loads((copied.folder / "evaluate_test_scan=serial.json").read_text())
    assert again["scan"] == "serial"
    assert {m: again[m] for m in METRICS} == pytest.approx({m: copied.metrics[m] for m in METRICS})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_evaluate_of_a_run_with_a_scan_for_gpus_says_so_and_takes_another(copied, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    path = copied.folder / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["recblr"]["config"]["model"]["scan"] = "fused"
    torch.save(checkpoint, path)
    refused = invoke("evaluate", f"ckpt_path={path}", cwd=copied.cwd)
    assert refused.code == 1 and "scan=fused cannot run: Triton needs a CUDA device" in refused.err
    assert "prepared" not in refused.out
    outcome = invoke("evaluate", f"ckpt_path={path}", "scan=auto", cwd=copied.cwd)
    assert outcome.code == 0, outcome.err
    again = json.loads((copied.folder / "evaluate_test_scan=auto.json").read_text())
    assert {m: again[m] for m in METRICS} == {m: copied.metrics[m] for m in METRICS}


def test_evaluate_refuses_a_scan_for_a_model_without_one(copied):
    path = copied.folder / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["recblr"]["config"]["model"]["scan"]
    torch.save(checkpoint, path)
    refused = invoke("evaluate", f"ckpt_path={path}", "scan=cpu", cwd=copied.cwd)
    assert refused.code == 1 and "scan=cpu: recblr has no scan" in refused.err


def test_same_command_again_prints_the_table_and_does_not_train(copied):
    before = {name: (copied.folder / name).stat().st_mtime_ns for name in FILES}
    outcome = invoke("train", *SMOKE, cwd=copied.cwd)
    assert outcome.code == 0 and "finished before" in outcome.out and "epoch" not in outcome.out
    assert table_row(outcome.out, "recblr") == table_row(copied.outcome.out, "recblr")
    assert {name: (copied.folder / name).stat().st_mtime_ns for name in FILES} == before


def test_another_command_of_the_same_run_is_kept_beside_the_first(copied):
    outcome = invoke("train", *SMOKE, "weight_decay=0.0", cwd=copied.cwd)
    assert outcome.code == 0 and "finished before" in outcome.out
    about = json.loads((copied.folder / "environment.json").read_text())
    assert "weight_decay" not in about["command"]
    (again,) = about["also"]
    assert again["command"].endswith(" weight_decay=0.0") and again["commit"] == about["commit"]


def test_unfinished_run_is_not_taken_for_a_finished_one(copied):
    (copied.folder / "README.md").unlink()
    (copied.folder / "checkpoints" / "last.ckpt").unlink()
    (copied.folder / "left.part").touch()
    outcome = invoke("train", *SMOKE, cwd=copied.cwd)
    assert outcome.code == 0 and "epoch 1/1" in outcome.out
    assert files_below(copied.folder) == FILES


def test_overwrite_trains_the_same_run_anew(copied):
    outcome = invoke("train", *SMOKE, "overwrite=true", cwd=copied.cwd)
    assert outcome.code == 0 and "epoch 1/1" in outcome.out
    assert run_folders(copied.cwd / "runs") == [copied.folder]
    assert RunFolder(copied.folder).read_config()["overwrite"] is True
    assert files_below(copied.folder) == FILES


def test_same_seed_is_the_same_run_bit_for_bit_and_another_seed_is_not(trained, log_here):
    for runs, seed in (("same", 2024), ("other", 7)):
        outcome = invoke("train", *SMOKE, f"seed={seed}", f"paths.runs={runs}", cwd=log_here)
        assert outcome.code == 0, outcome.err
    (same,), (other,) = run_folders(log_here / "same"), run_folders(log_here / "other")
    metrics = RunFolder(same).read_json("test_metrics.json")
    assert metrics == trained.metrics
    assert epochs(same) == epochs(trained.folder)
    ours, theirs = (pd.read_parquet(f / "test_ranks.parquet") for f in (same, trained.folder))
    pd.testing.assert_frame_equal(ours, theirs)
    assert RunFolder(other).read_json("test_metrics.json")["ndcg@10"] != metrics["ndcg@10"]
    assert epochs(other)[0]["train/loss"] != epochs(same)[0]["train/loss"]


def test_without_test_no_test_figure_exists(log_here):
    outcome = invoke("train", *SMOKE, "test=false", cwd=log_here)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(log_here / "runs")
    val = {"val_metrics.json"}
    assert files_below(folder) == FILES - {"test_metrics.json", "test_ranks.parquet"} | val
    assert "custom, val" in outcome.out and "custom, test" not in outcome.out
    assert RunFolder(folder).read_json("val_metrics.json")["ndcg@10"] == pytest.approx(
        float(epochs(folder)[0]["val/ndcg@10"]), abs=0
    )
    assert "test targets" not in (folder / "README.md").read_text()

    # The same command with test=true only adds the test: nothing is trained again.
    weights = (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    outcome = invoke("train", *SMOKE, cwd=log_here)
    assert outcome.code == 0, outcome.err
    assert (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns == weights
    assert "custom, test" in outcome.out and "epoch 1/" not in outcome.out
    assert (folder / "test_metrics.json").exists()


@pytest.mark.parametrize("floor, trainer", [("popularity", "smoke"), ("markov", "default")])
def test_floor_is_one_command_and_equals_the_floor_of_a_model_run(
    trained, log_here, floor, trainer
):
    outcome = invoke("train", *ON_LOG, f"model={floor}", f"trainer={trainer}", cwd=log_here)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(log_here / "runs")
    metrics = RunFolder(folder).read_json("test_metrics.json")
    floors = json.loads((trained.folder / "floors.json").read_text())
    assert {key: metrics[key] for key in floors[floor]} == floors[floor]
    assert metrics["split_hash"] == trained.metrics["split_hash"]
    assert "epoch 1/" not in outcome.out and not (folder / "metrics.csv").exists()
    ranks = pd.read_parquet(folder / "test_ranks.parquet")
    assert expected_metrics(ranks)["ndcg@10"] == pytest.approx(metrics["ndcg@10"], abs=1e-12)


def test_sweep_writes_four_run_folders_and_nothing_beside_them(log_here):
    outcome = invoke("train", "-m", "model.expansion=1,2", "dropout=0.2,0.5", *SMOKE, cwd=log_here)
    assert outcome.code == 0, outcome.err
    folders = run_folders(log_here / "runs" / "custom" / "recblr")
    settings = [RunFolder(folder).read_config() for folder in folders]
    found = {(c["model"]["expansion"], c["model"]["dropout"]) for c in settings}
    commands = {RunFolder(f).read_json("environment.json")["command"] for f in folders}
    assert any("model.expansion=2 dropout=0.5" in command for command in commands)
    assert len(commands) == 4 and not any(" -m " in command for command in commands)
    assert len(folders) == 4 and found == {(1, 0.2), (1, 0.5), (2, 0.2), (2, 0.5)}
    inside = {str((f / name).relative_to(log_here)) for f in folders for name in FILES}
    assert beside_the_cache(log_here) == inside | {"log.inter"}


def test_smoke_takes_at_most_20_batches_and_500_users_of_the_whole_data(tmp_path):
    arguments = ("data.n_users=600", "data.n_items=40", "data.mean_length=6", "batch_size=32")
    outcome = invoke("train", *arguments, "trainer=smoke", "logger=csv", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "600 users" in outcome.out
    (folder,) = run_folders(tmp_path / "runs")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 20
    assert RunFolder(folder).read_json("test_metrics.json")["users"] == 500
    assert len(pd.read_parquet(folder / "test_ranks.parquet")) == 500
    floors = RunFolder(folder).read_json("floors.json")
    assert {row["users"] for row in floors.values()} == {500}
    assert floors["ceiling"]["ndcg@10"] > floors["popularity"]["ndcg@10"]


def test_temporal_split_trains_and_says_so(log_here):
    outcome = invoke("train", *SMOKE, "data.split=temporal", "data.cut=[0.7,0.9]", cwd=log_here)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(log_here / "runs")
    text = " ".join(outcome.out.split())
    assert "test targets of temporal split at quantiles 0.7 and 0.9" in text
    assert "temporal split at quantiles" in (folder / "README.md").read_text()
    assert RunFolder(folder).read_json("test_metrics.json")["users"] < 60


def test_prefix_rows_train(log_here):
    outcome = invoke("train", *SMOKE, "target_mode=prefix", cwd=log_here)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(log_here / "runs")
    assert files_below(folder) == FILES and "prefix" in (folder / "README.md").read_text()


def test_odd_csv_is_read_as_it_is(tmp_path):
    """BOM, CRLF, no final newline; ids that look like numbers, nulls or text; short users."""
    users = {"NA": 4, "0001": 3, "1": 5, "Zoë Ünal": 4, "null": 3, "two": 2, "one": 1}
    items = ["007", "7", "NaN", "blue shoe", "靴"]
    lines = ["when,sku code,uid"]
    for user, (name, events) in enumerate(users.items()):
        for step in range(events):
            lines.append(f"2024-01-{step + 1:02d},{items[(user + step) % len(items)]},{name}")
    (tmp_path / "odd.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    outcome = invoke(
        "train", "data=custom", "data.path=odd.csv", "data.columns.user=uid",
        "data.columns.item=sku code", "data.columns.time=when", "data.min_interactions=1",
        "trainer=smoke", "logger=csv", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert re.search(r"prepared +7 +5 +22\n", outcome.out)
    (folder,) = run_folders(tmp_path / "runs")
    ranks = pd.read_parquet(folder / "test_ranks.parquet")
    last = {name: items[(u + n - 1) % len(items)] for u, (name, n) in enumerate(users.items())}
    assert dict(zip(ranks.user_id, ranks.item_id)) == {
        name: last[name] for name, events in users.items() if events >= 3
    }
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert sorted(checkpoint["recblr"]["item_ids"]) == sorted(["", *items])
    outcome = invoke("evaluate", f"ckpt_path={folder}/checkpoints/best.ckpt", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    again = RunFolder(folder).read_json("evaluate_test.json")
    assert again["ndcg@10"] == RunFolder(folder).read_json("test_metrics.json")["ndcg@10"]


def test_help_shows_groups_five_examples_and_the_config_without_loading_torch(tmp_path):
    outcome = spawn("train", "--help", cwd=tmp_path, options=("-X", "importtime"))
    assert outcome.code == 0
    examples = [line for line in outcome.out.splitlines() if line.startswith("python train.py")]
    assert len(examples) == 5
    for model in ("model: bert4rec, caser, ", "popularity, recblr, sasrec\n"):
        assert model in outcome.out
    assert "logger: csv, wandb\n" in outcome.out
    assert "seed: 2024" in outcome.out and "_target_: recblr.models.recblr.RecBLR" in outcome.out
    imported = {line.rsplit("|", 1)[-1].strip() for line in outcome.err.splitlines()}
    assert "hydra" in imported and not {"torch", "lightning", "wandb"} & imported
    assert not any(tmp_path.iterdir())


def test_help_of_evaluate_shows_its_config(tmp_path):
    outcome = invoke("evaluate", "--help", cwd=tmp_path)
    assert outcome.code == 0
    assert "ckpt_path=RUN/checkpoints/best.ckpt" in outcome.out and "split: test" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_number_of_threads_is_recorded_and_the_run_repeats_on_it(log_here, threads):
    for runs in ("first", "second"):
        arguments = (*SMOKE, f"paths.runs={runs}")
        outcome = spawn("train", *arguments, cwd=log_here, OMP_NUM_THREADS=threads)
        assert outcome.code == 0, outcome.err
    (first,), (second,) = run_folders(log_here / "first"), run_folders(log_here / "second")
    assert RunFolder(first).read_json("environment.json")["threads"] == int(threads)
    assert epochs(first) == epochs(second)
    assert (first / "test_metrics.json").read_text() == (second / "test_metrics.json").read_text()


@pytest.mark.slow
def test_terminated_run_fails_says_where_it_is_and_goes_on(tmp_path):
    arguments = ["logger=csv", "data.n_users=500", "trainer.max_epochs=5"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.splitlines()[-1] == "error: terminated", err
    assert "unfinished: runs/" in out + err and "the same command goes on with it" in out + err
    (folder,) = run_folders(tmp_path / "runs")
    assert not RunFolder(folder).finished()
    assert not (folder / "failed.json").exists()
    outcome = spawn("train", *arguments, cwd=tmp_path)
    assert outcome.code == 0 and "going on after epoch" in outcome.out, outcome.err
