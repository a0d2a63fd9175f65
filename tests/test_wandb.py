"""The default logger with no login and no network: what an offline run of W&B holds."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import Outcome, spawn, write_log
from wandb.proto import wandb_internal_pb2 as pb

from recblr.run_folder import METRICS, RunFolder

pytestmark = pytest.mark.slow  # 12 s, most of it imports and W&B's own process

BLOCK, HEAD = 32768, 7


def records(path: Path) -> Iterator[pb.Record]:
    """A `.wandb` file: 7 bytes, then a LevelDB log. A record is cut where a block of 32 KiB ends.

    Head of each part: checksum (4 bytes), length (2), kind (1 whole, 2 first, 3 middle, 4 last).
    """
    data, at, parts = path.read_bytes(), HEAD, []
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += HEAD
        parts.append(data[at : at + length])
        at += length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def values(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class Offline(NamedTuple):
    outcome: Outcome
    run: RunFolder
    records: list[pb.Record]
    cwd: Path


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Offline:
    cwd, home = tmp_path_factory.mktemp("unconnected"), tmp_path_factory.mktemp("home")
    write_log(cwd / "log.inter")
    nowhere = "http://127.0.0.1:9"  # a proxy that refuses: whoever asks the network fails
    env = {"HOME": str(home), "NETRC": str(home / "none"), "HTTPS_PROXY": nowhere}
    env |= {"HTTP_PROXY": nowhere, "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        outcome = spawn(
            "train", "data=custom", "data.path=log.inter", "trainer=smoke", "model.expansion=1",
            "seed=5", cwd=cwd, **env,
        )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (file,) = cwd.rglob("*.wandb")
    run = RunFolder(next(cwd.rglob("config.yaml")).parent)
    return Offline(outcome, run, list(records(file)), cwd)


def test_run_ends_without_login_or_network_and_says_offline_in_one_line(offline):
    lines = (offline.outcome.out + offline.outcome.err).splitlines()
    (said,) = [line for line in lines if "offline" in line.lower()]
    assert said.startswith("W&B: offline") and "wandb sync" in said
    assert not [line for line in lines if line.startswith("wandb:")]
    assert offline.run.finished(test=True)


def test_its_files_are_in_the_run_folder_only(offline):
    (file,) = offline.cwd.rglob("*.wandb")
    assert file.is_relative_to(offline.run.path / "wandb")
    assert {path.name for path in offline.cwd.iterdir()} == {"log.inter", "data", "runs"}


def test_run_is_named_grouped_and_tagged(offline):
    (run,) = [r.run for r in offline.records if r.WhichOneof("record_type") == "run"][:1]
    assert run.project == "recblr"
    assert run.run_group == "custom/recblr" and run.job_type == "recblr"
    assert set(run.tags) == {"custom", "recblr", "default", "scan=auto", "seed5", "smoke"}
    assert run.display_name == f"custom/recblr/{offline.run.path.name}"


def test_config_is_there_from_the_start_and_resolved(offline):
    kinds = [record.WhichOneof("record_type") for record in offline.records]
    first = kinds.index("run")
    assert first < kinds.index("history")
    config = values(offline.records[first].run.config.update)
    assert config["model"]["expansion"] == 1 and config["seed"] == 5
    assert config["datamodule"]["max_length"] == 50
    assert {key: config[key] for key in offline.run.read_config()} == offline.run.read_config()


def test_history_has_the_row_of_each_epoch(offline):
    rows = [values(r.history.item) for r in offline.records if r.HasField("history")]
    (row,) = [row for row in rows if "train/loss" in row]
    assert row["_runtime"] > 0  # W&B's own seconds: an axis of the workspace
    assert row["epoch"] == 1 and row["train/loss"] > 0
    assert {f"val/{metric}" for metric in METRICS} <= row.keys()
    assert "train/targets_per_s" in row


def test_summary_has_the_test_metrics(offline):
    summary = {}
    for record in offline.records:
        if record.HasField("summary"):
            summary |= values(record.summary.update)
    metrics = offline.run.read_json("test_metrics.json")
    assert {m: summary[f"test/{m}"] for m in METRICS} == {m: metrics[m] for m in METRICS}


def test_run_is_closed_with_exit_code_0(offline):
    (end,) = [record.exit for record in offline.records if record.HasField("exit")]
    assert end.exit_code == 0


def test_metrics_csv_is_written_beside_it(offline):
    assert (offline.run.path / "metrics.csv").read_text().startswith("epoch,train/loss,")
