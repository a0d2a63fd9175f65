"""Sweeps as jobs of a cluster: hydra/launcher=slurm, and the same plug-in on this machine."""

from pathlib import Path

import pytest
from command_line import ON_LOG, invoke, run_folders, spawn, write_log
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from recblr.run_folder import RunFolder

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e .[slurm]")
CONF = Path(__file__).parents[2] / "conf"


def test_slurm_composes_and_takes_what_a_queue_asks_for():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "paths.runs=here"]
        launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.partition, launcher.name, launcher.timeout_min) == ("gpu", "recblr", 1440)
    assert launcher.submitit_folder == "here/.submitit/%j"


@pytest.mark.parametrize("name", ["slurm", "submitit_local"])
def test_a_missing_plug_in_is_one_line_that_says_what_to_install(tmp_path, monkeypatch, name):
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    for file in ("submitit_slurm.yaml", "submitit_local.yaml"):
        monkeypatch.delitem(known, file)
    outcome = invoke("train", "-m", f"hydra/launcher={name}", cwd=tmp_path)
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "is not installed: pip install -e .[slurm]" in outcome.err


@pytest.mark.slow
def test_jobs_of_the_plug_in_end_in_run_folders_and_an_error_in_one_line(tmp_path):
    write_log(tmp_path / "log.inter")
    sweep = ("-m", "hydra/launcher=submitit_local", "model=gru4rec", "lr=0.001,1e30")
    outcome = spawn("train", *sweep, *ON_LOG, "trainer.max_epochs=2", cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: ")
    runs = [RunFolder(folder) for folder in run_folders(tmp_path / "runs" / "custom")]
    assert sorted(run.finished(test=True) for run in runs) == [False, True]
    assert [(run.path / "failed.json").exists() for run in runs] == [
        not run.finished() for run in runs
    ]
