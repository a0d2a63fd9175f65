"""What identifies a run, and that a folder is either finished or visibly not."""

import csv
import functools
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from recblr.run_folder import RunFolder, environment, identity, keep_log, model_name

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def hydra_config():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def config(*overrides: str) -> dict:
    cfg = compose("train", ["data=custom", "data.path=log.csv", *overrides])
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "lr=0.1", "weight_decay=0.1", "dropout=0.3", "max_length=7", "batch_size=7",
        "target_mode=prefix", "mask_history=true", "scan=serial", "model.expansion=1",
        "model.d_model=8", "model.n_layers=1", "model.conv_width=2", "model.lambda_init=random",
        "model=markov", "data.order=item_id", "data.repeats=last", "data.min_interactions=1",
        "data.name=other", "trainer=smoke", "trainer.max_epochs=1", "datamodule.eval_users=9",
        "callbacks.early_stopping.patience=1",
    ],
)  # fmt: skip
def test_identity_changes_with_each_setting_that_may_change_the_result(override):
    assert identity(config(override), "split") != identity(config(), "split")


@pytest.mark.parametrize(
    "override",
    [
        "paths.runs=elsewhere", "logger=csv", "logger.wandb.project=mine", "data.path=moved.csv",
        "trainer.accelerator=cpu", "test=false", "overwrite=true",
    ],
)  # fmt: skip
def test_identity_does_not_change_with_where_a_run_is_and_what_it_prints(override):
    assert identity(config(override), "split") == identity(config(), "split")


def test_identity_changes_with_the_split_and_is_eight_hex_digits():
    assert identity(config(), "one") != identity(config(), "two")
    assert len(identity(config(), "one")) == 8 and int(identity(config(), "one"), 16) >= 0


def test_identity_ignores_the_order_of_keys():
    turned = dict(reversed(config().items()))
    assert identity(turned, "split") == identity(config(), "split")


def test_folder_is_named_after_data_model_seed_and_identity():
    run = RunFolder.of(config("seed=3", "model=markov", "paths.runs=here"), "split")
    wanted = identity(config("seed=3", "model=markov"), "split")
    assert run.path == Path("here/custom/markov") / f"s3-{wanted}"


def test_model_name_is_its_module():
    names = {model_name(config(f"model={name}")) for name in ("recblr", "markov", "popularity")}
    assert names == {"recblr", "markov", "popularity"}


def test_nothing_is_written_before_start(tmp_path):
    run = RunFolder.of(config(f"paths.runs={tmp_path}/runs"), "split")
    assert not run.finished() and not any(tmp_path.iterdir())


def test_folder_is_finished_only_with_its_model_card(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    run.write_json("test_metrics.json", {"hr@10": 0.5})
    (run.path / "README.md.part").write_text("half of a mod")
    assert not run.finished()
    run.finish("# card\n")
    assert run.finished() and not (run.path / "README.md.part").exists()


def test_start_removes_what_an_earlier_run_left(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    run.append_epoch({"epoch": 1})
    run.finish("# card\n")
    run.start(config("seed=5"), {"threads": 2})
    assert not run.finished()
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "environment.json"}


def test_run_that_is_being_written_is_refused_to_others_and_free_afterwards(tmp_path):
    run = RunFolder(tmp_path / "data" / "run")
    refused = pytest.raises(ValueError, match="another process is writing this run")
    with run.lock(), refused, RunFolder(run.path).lock():
        raise AssertionError("two writers")
    with run.lock():
        assert (tmp_path / "data" / "run.lock").exists()
    assert not any((tmp_path / "data").iterdir())


def test_config_and_json_come_back_as_they_went_in(tmp_path):
    run = RunFolder(tmp_path / "run")
    written = config("data.path='ключ.csv'")
    run.start(written, {"cpu": "x"})
    assert run.read_config() == written
    value = {"ndcg@10": 0.1 + 0.2, "users": 3}
    run.write_json("test_metrics.json", value)
    assert run.read_json("test_metrics.json") == value


@pytest.mark.parametrize("name", ["README.md", "test_metrics.json", "test_ranks.parquet"])
def test_write_that_dies_leaves_no_file_under_the_final_name(tmp_path, monkeypatch, name):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    write = {
        "README.md": lambda: run.finish("# card\n"),
        "test_metrics.json": lambda: run.write_json("test_metrics.json", {"hr@10": 1}),
        "test_ranks.parquet": lambda: run.write_ranks({"user_id": ["a"], "higher": [0]}),
    }[name]

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert not (run.path / name).exists() and not run.finished()
    write()
    assert (run.path / name).exists() and not list(run.path.glob("*.part"))


def test_epochs_are_appended_under_one_header(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    rows = [{"epoch": n, "train/loss": 1 / n} for n in (1, 2, 3)]
    for row in rows:
        run.append_epoch(row)
    with (run.path / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in read] == rows


def test_ranks_come_back_as_strings_and_int32(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    ids = np.array(["NA", "0001"], dtype=object)
    counts = np.array([0, 3], np.int32)
    run.write_ranks({"user_id": ids, "item_id": ids, "higher": counts, "equal": counts})
    ranks = pd.read_parquet(run.path / "test_ranks.parquet")
    assert ranks.user_id.tolist() == ["NA", "0001"] and ranks.higher.dtype == "int32"


def test_log_file_holds_messages_and_the_error_that_ended_the_run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config(), {})
    before = logging.getLogger().handlers[:]
    with pytest.raises(RuntimeError), run.log_to_file(keep_log()):
        logging.getLogger("recblr").warning("on the way")
        raise RuntimeError("lost")
    text = (run.path / "run.log").read_text()
    assert "on the way" in text and "RuntimeError: lost" in text and "Traceback" in text
    assert logging.getLogger().handlers == before


def test_environment_is_plain_and_complete():
    found = environment("train.py", ["data.columns.item=item id"])
    assert found["command"] == "python train.py 'data.columns.item=item id'"
    assert {"command", "commit", "python", "versions", "cpu", "cores", "gpu"} <= found.keys()
    assert found["versions"]["numpy"] and found["threads"] >= 1
    vectors = torch.backends.cpu.get_cpu_capability()
    assert re.fullmatch(rf"\S.* \({vectors}\)", found["cpu"])
