"""Finished runs, from their folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from recblr.report.tables import evaluated_on, run_metrics
from recblr.run_folder import METRICS, Config, RunFolder, model_name

# Overrides that are columns of their own, or that cannot change a result.
_ELSEWHERE = ("data", "model", "ablation", "seed", "logger", "experiment", "trainer")
_ELSEWHERE += ("data.path", "data.urls", "data.sha256", "test", "overwrite", "resume")
_ELSEWHERE += ("trainer.enable_progress_bar", "data.name")

# Of the configuration: what no setting is, or cannot change a result.
_NO_SETTINGS = {"ablation", "eval_batch_size", "overwrite", "recipe", "resume", "scan", "seed"}
_NO_SETTINGS |= {"smoke", "test"}

# Which is a column.
_TOLD_BY_RECIPE = tuple(f"recipe={kind}/" for kind in ("usual", "tuned", "bias", "best"))

COUNTS = ("n_users", "n_items", "interactions")  # of a log, after its filter
FLOORS = ("popularity", "markov")


@dataclass(frozen=True)
class Result:
    """One finished run. path: its folder, None if read from a file. ranks: of its users, if kept.

    settings: `lr=0.001 ..`, what its recipe said when it was trained; a recipe may change later.
    metrics: by name. curve: for each epoch validation NDCG@10 and the seconds until its end.
    """

    dataset: str
    model: str
    variant: str
    recipe: str
    overrides: str
    objective: str
    target_mode: str
    order: str
    data_split: str
    max_length: int
    mask_history: bool
    evaluated_on: str
    seed: int
    split_hash: str
    settings: str
    epochs: int
    seconds: float
    device: str
    versions: str
    commit: str
    command: str
    metrics: dict[str, float]
    smoke: bool = False
    path: Path | None = None
    ranks: Path | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def protocol(self) -> tuple:
        """What has to be equal for two figures to stand in one table."""
        return (self.split_hash, self.evaluated_on, self.mask_history, self.order)

    @property
    def setting(self) -> tuple:
        """What the seeds of one cell share."""
        return (self.dataset, self.model, self.variant, self.recipe, self.overrides)

    @property
    def identity(self) -> tuple:
        """What is equal for a run and the same trained anew."""
        return (*self.setting, self.protocol, self.seed, self.smoke)


def run_folders(paths: Iterable[Path]) -> Iterator[RunFolder]:
    """Every run folder at or below some paths; OSError for a path that cannot be read."""
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        for folder, below, files in os.walk(path, onerror=_not_readable):
            below.sort()
            if "config.yaml" in files:
                yield RunFolder(folder)


def _not_readable(error: OSError) -> None:
    raise error


def result_of(run: RunFolder) -> Result:
    """The row of a finished run."""
    config, about, metrics = run.read_config(), run.read_json("environment.json"), run_metrics(run)
    epochs = run.read_epochs()
    seconds = list(accumulate(row["train/seconds"] + row["val/seconds"] for row in epochs))
    ranks = run.path / "test_ranks.parquet"
    data, loader = config["data"], config["datamodule"]
    return Result(
        dataset=data["name"],
        model=model_name(config),
        variant=config.get("ablation", "default"),
        recipe=config["recipe"],
        overrides=overrides_of(about["command"]),
        objective=config["objective"]["_target_"].split(".")[-1],
        target_mode=loader["target_mode"],
        order=metrics["order"],
        data_split=data.get("split", "leave_one_out"),
        max_length=loader["max_length"],
        mask_history=loader["mask_history"],
        evaluated_on=evaluated_on(run),
        seed=config["seed"],
        split_hash=metrics["split_hash"],
        settings=settings_of(config),
        epochs=len(epochs),
        seconds=round(seconds[-1], 1) if seconds else 0.0,
        device=about["gpu"] or f"{about['cpu']}, {about['threads']} threads",
        versions=f"python {about['python']}; torch {about['versions']['torch']}",
        commit=about["commit"] or "unknown",
        command=about["command"],
        metrics={name: metrics[name] for name in METRICS},
        smoke=config["smoke"],
        path=run.path,
        ranks=ranks if ranks.exists() else None,
        curve=tuple((row["val/ndcg@10"], round(s, 1)) for row, s in zip(epochs, seconds)),
    )


def settings_of(config: Config) -> str:
    """The single values of a configuration that a recipe may set: `batch_size=2048 ..`."""
    found = {key: value for key, value in config.items() if key not in _NO_SETTINGS}
    for section in ("model", "objective"):
        found |= {f"{section}.{key}": value for key, value in config[section].items()}
    found["trainer.max_epochs"] = config["trainer"].get("max_epochs")
    return shlex.join(
        f"{key}={value}"
        for key, value in sorted(found.items())
        if isinstance(value, bool | int | float | str) and not key.endswith(("._target_", ".scan"))
    )


def changed_since(one: Result, other: Result) -> list[str]:
    """`lr=0.001 and 0.003` for each setting in which two runs of one name differ.

    What only one of them has, an option of later code, is not counted.
    """
    ours, others = (
        dict(word.split("=", 1) for word in shlex.split(run.settings)) for run in (one, other)
    )
    return [
        f"{key}={value} and {others[key]}"
        for key, value in ours.items()
        if others.get(key, value) != value
    ]


def overrides_of(command: str) -> str:
    """The settings of a command beyond data, model, ablation, recipe and seed, in order."""
    settings = [word for word in shlex.split(command) if "=" in word]
    kept = {
        key: word
        for word in settings
        if (key := word.split("=", 1)[0].lstrip("+")) not in _ELSEWHERE
        and not key.startswith(("paths.", "hydra.", "logger.", "data.columns."))
        and not word.startswith(_TOLD_BY_RECIPE)
    }
    return " ".join(kept[key] for key in sorted(kept))


def without_folders(command: str) -> str:
    """A command as others can give it: files by their name, without the folders of one machine."""
    words = [
        f"data.path={Path(word.removeprefix('data.path=')).name}"
        if word.startswith("data.path=")
        else word
        for word in shlex.split(command)
        if not word.startswith("paths.")
    ]
    return shlex.join(words)


def read_results(paths: Iterable[Path]) -> list[Result]:
    """The finished runs below some folders, and once per split the floors that they measured.

    A run that two commands ask for with other settings, one of them a default, comes as both. Smoke
    runs are left out, unless there is nothing else: their figures mean nothing.
    """
    runs: dict[tuple, Result] = {}
    for folder in run_folders(paths):
        if not folder.finished():
            continue
        result = result_of(folder)
        if result.model not in FLOORS:
            for again in folder.read_json("environment.json").get("also", ()):
                named = {"command": again["command"], "commit": again["commit"] or "unknown"}
                other = replace(result, overrides=overrides_of(again["command"]), **named)
                runs[other.identity] = other
            runs[result.identity] = result
        counts = {k: v for k, v in run_metrics(folder).items() if k in COUNTS}
        for name, metrics in folder.read_json("floors.json").items():
            floor = floor_of(result, name, metrics | counts if name == "popularity" else metrics)
            runs.setdefault(floor.identity, floor)
    real = [result for result in runs.values() if not result.smoke]
    return real or list(runs.values())


def floor_of(result: Result, name: str, metrics: dict[str, float]) -> Result:
    """What a run measured beside itself: the same for every model on its split."""
    return replace(
        result,
        model=name,
        variant="default",
        recipe="",
        overrides="",
        objective="",
        target_mode="",
        settings="",
        seed=0,
        epochs=0,
        seconds=0.0,
        metrics={name: metrics[name] for name in (*METRICS, *COUNTS) if name in metrics},
        path=None,
        ranks=None,
        curve=(),
    )
