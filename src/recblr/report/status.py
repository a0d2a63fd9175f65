"""Which runs below a folder are finished, cut, failed, pruned by a search, or being written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from recblr.report.results import run_folders
from recblr.report.tables import evaluated_on, run_metrics
from recblr.run_folder import RunFolder, commit, variant_name


class Status(NamedTuple):
    """state: finished, running, cut, failed, or pruned: a search gave it up.

    kind: what sets its NDCG@10 apart: smoke, val, masked. older: written by other code than this
    checkout. error: what ended a run that failed.
    """

    path: Path
    name: str
    state: str
    epochs: int
    ndcg: float | None
    kind: str
    older: bool
    error: str


def statuses(paths: Iterable[Path]) -> list[Status]:
    """One for each run folder, in the order of their paths."""
    here = commit()
    return [_status(run, here) for run in run_folders(paths)]


def _status(run: RunFolder, here: str | None) -> Status:
    config, about = run.read_config(), run.read_json("environment.json")
    failed = run.path / "failed.json"
    error = run.read_json("failed.json")["error"] if failed.exists() else ""
    state = "cut"
    if run.finished():
        state = "finished"
    elif run.locked():
        state = "running"
    elif error:
        state = "pruned" if error.startswith("TrialPruned: ") else "failed"
    kinds = {
        "smoke": config["smoke"],
        "val": state == "finished" and evaluated_on(run) == "val",
        "masked": config["datamodule"]["mask_history"],
    }
    last = [about, *about.get("resumed", [])][-1]
    return Status(
        run.path,
        f"{config['data']['name']}/{variant_name(config)}",
        state,
        len(run.read_epochs()),
        run_metrics(run)["ndcg@10"] if state == "finished" else None,
        ", ".join(name for name, holds in kinds.items() if holds),
        last["commit"] != here,
        error if state == "failed" else "",
    )
