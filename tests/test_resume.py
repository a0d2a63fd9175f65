"""A run that was cut goes on and ends as one that was not, bit for bit."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import ON_LOG, ROOT, invoke, run_folders, write_log

from recblr.run_folder import RunFolder
from recblr.training.callbacks import Checkpoint, EpochRecord
from recblr.training.module import SequentialRecommender

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

EPOCHS = 4
COMMAND = (*ON_LOG, f"trainer.max_epochs={EPOCHS}", "batch_size=64", "lr=0.01")
MEASURED = ("train/seconds", "val/seconds", "train/targets_per_s", "memory/peak_mb")


class Cut(BaseException):
    """Ends a run where it is raised, as a signal would."""


def result(folder: Path) -> dict:
    """All that must not depend on a cut."""
    run = RunFolder(folder)
    assert run.finished(test=True)

    def sha256(tensors) -> str:
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()

    weights = {
        name: sha256(torch.load(run.checkpoints / name, weights_only=True)["state_dict"].values())
        for name in ("best.ckpt", "last.ckpt")
    }
    ranks = pd.read_parquet(run.path / "test_ranks.parquet")
    epochs = pd.read_csv(run.path / "metrics.csv").drop(columns=list(MEASURED))
    return {
        "weights": weights,
        "ranks": {name: sha256([torch.tensor(ranks[name])]) for name in ("higher", "equal")},
        "epochs": epochs.to_dict(),
        "metrics": run.read_json("test_metrics.json"),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    torch.set_num_threads(1)  # as in every test: sums depend on it
    cwd = tmp_path_factory.mktemp("whole")
    write_log(cwd / "log.inter")
    assert invoke("train", *COMMAND, cwd=cwd).code == 0
    return result(run_folders(cwd / "runs")[0])


def cut(monkeypatch, owner, name: str, call: int) -> None:
    """Raise Cut in that call of a method, counted from 1."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            raise Cut
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    "owner, name, call, message",
    [
        (EpochRecord, "on_train_batch_end", 2, None),  # in the first epoch: starts anew
        (EpochRecord, "on_train_batch_end", 20, "going on after epoch 2"),
        (EpochRecord, "on_validation_end", 2, "going on after epoch 1"),
        (
            Checkpoint,
            "_save_none_monitor_checkpoint",
            3,
            "going on after epoch 2",
        ),  # its row is written
        (
            SequentialRecommender,
            "on_test_start",
            3,
            f"going on after epoch {EPOCHS}",
        ),  # after 2 floors
    ],
)
def test_a_run_cut_anywhere_ends_as_the_undisturbed_one(
    tmp_path, monkeypatch, undisturbed, owner, name, call, message
):
    write_log(tmp_path / "log.inter")
    with monkeypatch.context() as patch:
        cut(patch, owner, name, call)
        with pytest.raises(Cut):
            invoke("train", *COMMAND, cwd=tmp_path)
    (folder,) = run_folders(tmp_path / "runs")
    assert not RunFolder(folder).finished()
    outcome = invoke("train", *COMMAND, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert (message or "epoch 1/") in outcome.out
    assert result(folder) == undisturbed
    assert len(RunFolder(folder).read_json("environment.json").get("resumed", [])) == bool(message)


def test_resume_goes_on_with_the_runs_own_settings_where_the_folder_is_now(
    tmp_path, monkeypatch, undisturbed
):
    write_log(tmp_path / "log.inter")
    with monkeypatch.context() as patch:
        cut(patch, EpochRecord, "on_train_batch_end", 20)
        with pytest.raises(Cut):
            invoke("train", *COMMAND, cwd=tmp_path)
    folder = run_folders(tmp_path / "runs")[0].rename(tmp_path / "moved")
    refused = invoke("train", "resume=moved", "lr=0.1", cwd=tmp_path)
    assert refused.code == 1 and "lr: resume=moved goes on with its own settings" in refused.err
    outcome = invoke("train", "resume=moved", "paths.data=elsewhere", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "going on after epoch 2" in outcome.out
    assert result(folder) == undisturbed
    assert (tmp_path / "elsewhere" / "cache").is_dir()
    again = invoke("train", "resume=moved", cwd=tmp_path)
    assert again.code == 0 and "finished before" in again.out


def test_resume_refuses_another_log_and_a_folder_that_is_no_run(tmp_path, monkeypatch):
    write_log(tmp_path / "log.inter")
    with monkeypatch.context() as patch:
        cut(patch, EpochRecord, "on_train_batch_end", 20)
        with pytest.raises(Cut):
            invoke("train", *COMMAND, cwd=tmp_path)
    (folder,) = run_folders(tmp_path / "runs")
    write_log(tmp_path / "log.inter", users=50)
    outcome = invoke("train", f"resume={folder}", cwd=tmp_path)
    assert outcome.code == 1 and "trained on other data" in outcome.err
    outcome = invoke("train", "resume=data", cwd=tmp_path)
    assert outcome.code == 1 and "resume=data: not a run folder" in outcome.err


def test_an_error_is_kept_in_the_folder_until_the_run_goes_on(tmp_path):
    write_log(tmp_path / "log.inter")
    diverges = [*ON_LOG, "trainer.max_epochs=2", "lr=1e30"]
    assert invoke("train", *diverges, cwd=tmp_path).code == 1
    (folder,) = run_folders(tmp_path / "runs")
    assert RunFolder(folder).read_json("failed.json")["error"].startswith("ValueError: ")


@pytest.mark.slow
def test_a_run_killed_five_times_ends_as_the_undisturbed_one(tmp_path, undisturbed):
    write_log(tmp_path / "log.inter")
    command = [sys.executable, str(ROOT / "train.py"), *COMMAND]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    draw = random.Random(time.time_ns())
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(5):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, **quiet)
        time.sleep(draw.uniform(4, 9))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=tmp_path, env=environment, **quiet).returncode == 0
    assert result(run_folders(tmp_path / "runs")[0]) == undisturbed
