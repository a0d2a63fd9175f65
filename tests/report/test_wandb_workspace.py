"""The workspace made from code: built offline, and only of keys that a run logs."""

import json
import re
import sys

import pytest
from command_line import SMOKE, invoke, run_folders, write_log

from recblr.report.__main__ import main
from recblr.run_folder import METRICS, RunFolder

pytest.importorskip("wandb_workspaces", reason="pip install -e .[wandb]")

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    cwd = tmp_path_factory.mktemp("logged")
    write_log(cwd / "log.inter")
    assert invoke("train", *SMOKE, cwd=cwd).code == 0
    return RunFolder(run_folders(cwd / "runs")[0])


def printed(capsys, *arguments: str) -> dict:
    main(["wandb", "--project", "p", "--dry-run", *arguments])
    return json.loads(capsys.readouterr().out)


def panels(definition: dict) -> list[dict]:
    bank = definition["spec"]["section"]["panelBankConfig"]
    return [panel for section in bank["sections"] for panel in section["panels"]]


def keys(panel: dict) -> set[tuple[str, str]]:
    """(where it is logged, key) for all that a panel shows."""
    config = panel["config"]
    shown = [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
    shown += config.get("metrics", []) + [c["accessor"] for c in config.get("columns", [])]
    found = {tuple(key.split(":", 1)) if ":" in key else ("history", key) for key in shown}
    if panel["viewType"] == "Bar Chart":
        found = {("summary", key) for _, key in found}
    if group := config.get("groupBy"):
        found.add(("config", group) if ".value" in group else ("run", group))
    return found


def test_every_key_of_every_panel_is_one_that_a_run_logs(run, capsys):
    def is_in_config(path: str) -> bool:
        node = run.read_config()
        for name in path.replace(".value", "", 1).split("."):
            node = node.get(name, {}) if isinstance(node, dict) else {}
        return node != {}

    history = set(run.read_epochs()[0]) | {"_runtime"}
    summary = history | {f"test/{metric}" for metric in METRICS}
    logged = {"history": history.__contains__, "summary": summary.__contains__}
    logged |= {"config": is_in_config, "run": {"jobType"}.__contains__}
    made = panels(printed(capsys))
    shown = [(where, key) for panel in made for where, key in keys(panel)]
    assert [(where, key) for where, key in shown if not logged[where](key)] == []
    assert {kind for kind, _ in shown} == logged.keys()


def test_it_has_the_panels_that_compare(capsys):
    made = {panel["config"]["chartTitle"]: keys(panel) for panel in panels(printed(capsys))}
    assert len(made) == 6
    assert {("config", "dropout.value"), ("config", "model.value.expansion")} < made[
        "Dropout and expansion"
    ]
    assert ("run", "jobType") in made["Models and ablations"]
    assert ("history", "epoch") in made["Validation NDCG@10 by epoch"]
    assert ("history", "_runtime") in made["Validation NDCG@10 by seconds"]
    assert ("config", "model.value.scan") in made["Targets per second by scan"]


def test_data_keeps_the_runs_whose_name_begins_with_it(run, capsys):
    (runs,) = printed(capsys, "--data", "custom")["spec"]["section"]["runSets"]
    name = f"custom/recblr/{run.path.name}"  # tests/test_wandb.py
    assert runs["search"]["isRegex"] and re.search(runs["search"]["query"], name)
    assert not re.search(runs["search"]["query"], "ml-100k/recblr/s1")


def test_without_a_login_it_is_printed_and_said(capsys, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    main(["wandb", "--project", "p", "--entity", "e"])
    out, err = capsys.readouterr()
    assert json.loads(out)["entity"] == "e" and "not logged in" in err


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2.interface", None)
    with pytest.raises(SystemExit, match=r"pip install -e \.\[wandb\]"):
        main(["wandb", "--project", "p", "--dry-run"])
