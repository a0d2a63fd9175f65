"""Settings of a model searched on a data set: `python train.py experiment=tune model=X data=Y`.

A trial is an ordinary run without a test metric, in its own run folder: the command in its
`environment.json` repeats it. Optuna's journal lies beside the run folders. What a trial is given
depends on the seed and on the trials that ended before it, so a search that was killed goes on
where it was: it runs none of them again, and the one that was cut goes on after its last epoch.
"""

from __future__ import annotations

import copy
import logging
import shlex
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from recblr.models.saved import build
from recblr.run_folder import RunFolder, commit, model_name, variant_name
from recblr.training.validate import check_config, is_floor, read_keys

try:
    import optuna
except ImportError:
    raise ValueError("experiment=tune needs Optuna: pip install -e .[tune]") from None

from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger(__name__)

RECIPE_KEYS = (
    *("dropout", "max_length", "batch_size", "eval_batch_size", "lr", "weight_decay"),
    *("repeat_bias", "direct_conv", "ahead_weight"),
)
MONITOR = "val/ndcg@10"

Settings = dict[str, Any]


class Pruning(L.Callback):
    """Ends a run between two epochs where its trial is behind the others."""

    def __init__(self, trial: optuna.Trial, run: RunFolder):
        self.trial, self.run = trial, run
        trial.set_user_attr("run", str(run.path))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        report(self.trial, self.run)
        if self.trial.should_prune():
            epoch = trainer.current_epoch
            raise optuna.TrialPruned(f"behind the median of other trials after epoch {epoch}")


def report(trial: optuna.Trial, run: RunFolder) -> float:
    """Give a trial those epochs of its run that it does not have; returns the best so far."""
    values = {int(row["epoch"]): row[MONITOR] for row in run.read_epochs()}
    known = trial.study.trials[trial.number].intermediate_values
    for epoch in sorted(values.keys() - known.keys()):
        trial.report(values[epoch], epoch)
    return max(values.values(), default=0.0)


def search(cfg: DictConfig, overrides: list[str], train: Callable[..., Path]) -> Path:
    """Run `cfg.search.trials` trials, those of an earlier call counted; returns the recipe's
    file, or the journal of a smoke search.

    overrides: of the command. train: runs a config in its folder and returns that.
    """
    space = _space(cfg)
    own = {key: cfg[key] for key in space}
    file, split_hash = _journal(cfg)
    with RunFolder(file.with_suffix("")).lock():
        study = _study(cfg, file)
        while len(ended := _ended(study)) < cfg.search.trials:
            if not ended and not study.get_trials(states=(TrialState.WAITING,)):
                study.enqueue_trial(own)
            study.sampler = optuna.samplers.TPESampler(seed=_seed(cfg.seed, len(ended)))
            trial = study.ask(space)
            what = f"trial {len(ended) + 1} of {cfg.search.trials}"
            log.info("%s: %s", what, _words(trial.params))
            command = _command(cfg, overrides, trial.params)
            try:
                run = RunFolder(train(_with(cfg, trial.params), command, partial(Pruning, trial)))
            except (optuna.TrialPruned, ValueError) as reason:
                if "run" not in trial.user_attrs:  # not of the setting: nothing was trained
                    raise
                log.info("%s: given up, %s", what, reason)
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, report(trial, run))
    _print_trials(ended, space)
    if not any(trial.state == TrialState.COMPLETE for trial in ended):
        raise ValueError("no trial came to its end: lower search.space.lr")
    if cfg.smoke:
        log.info("a smoke search writes no recipe")
        return file
    name = f"{cfg.data.name}/{variant_name(cfg)}"
    recipe = _folder(cfg) / f"{name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    if recipe.exists():
        earlier = recipe.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        log.warning("%s is replaced; it had %s", recipe, earlier)
    recipe.write_text(_recipe(cfg, study, split_hash, overrides), encoding="utf-8")
    log.info("written: %s, used by recipe=tuned/%s", recipe, name)
    return recipe


def _space(cfg: DictConfig) -> dict[str, CategoricalDistribution]:
    """Values of every key that the model reads, its own among them; ValueError for a wrong one."""
    asked = OmegaConf.to_container(cfg.search.space)
    if is_floor(cfg):
        raise ValueError(f"experiment=tune: {model_name(cfg)} is counted, it has no settings")
    if cfg.test:
        raise ValueError("test=true: a search must not see a test metric; use its recipe for that")
    for key in ("trials", "epochs"):
        if not isinstance(cfg.search[key], int) or cfg.search[key] < 1:
            raise ValueError(f"search.{key}={cfg.search[key]}: must be 1 or more")
    space, read = {}, read_keys(cfg)
    for key, values in asked.items():
        if key not in RECIPE_KEYS:
            raise ValueError(
                f"search.space.{key}: not in a recipe; valid: {', '.join(RECIPE_KEYS)}"
            )
        if not isinstance(values, list) or not values:
            raise ValueError(f"search.space.{key}={values}: must be a list, as [0.1,0.2]")
        if key not in read:
            log.info("search.space.%s: %s does not read it", key, model_name(cfg))
            continue
        for value in values:
            check_config(_with(cfg, {key: value}), set(map(str, cfg)), [])
        space[key] = CategoricalDistribution(sorted({cfg[key], *values}))
    if not space:
        raise ValueError(f"search.space: {model_name(cfg)} reads none of it")
    return space


def _journal(cfg: DictConfig) -> tuple[Path, str]:
    """The file of the search, named after all that its trials depend on, and the split's hash."""
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    asked = {k: v for k, v in cfg.search.items() if k not in ("trials", "recipes")}
    config = OmegaConf.to_container(cfg, resolve=True)
    run = RunFolder.of(config | {"searched": asked}, data.split_hash).path
    return run.with_name(f"search-{run.name}.journal"), data.split_hash


def _folder(cfg: DictConfig) -> Path:
    """Where recipes go: beside those that Hydra reads, unless `search.recipes` names a folder."""
    if cfg.search.recipes is not None:
        return Path(cfg.search.recipes)
    sources = HydraConfig.get().runtime.config_sources
    return Path(next(s.path for s in sources if s.provider == "main"), "recipe", "tuned")


def _study(cfg: DictConfig, file: Path) -> optuna.Study:
    """The study of a journal that no other process writes; what was cut is asked for again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)  # of a process that was killed
    if cfg.overwrite:
        file.unlink(missing_ok=True)
    if file.exists():  # half a line, where the power failed
        lines, end, _ = file.read_bytes().rpartition(b"\n")
        file.write_bytes(lines + end)
    lock = JournalFileOpenLock(str(file))
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file), lock)),
        study_name=file.stem,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(cfg.search.warmup_trials, cfg.search.warmup_epochs),
    )
    for cut in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(cut.number, state=TrialState.FAIL)
    return study


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _with(cfg: DictConfig, settings: Settings) -> DictConfig:
    """The config of a trial: that of the command that `_command` gives."""
    trial = copy.deepcopy(cfg)
    trial.search, trial.test = None, False
    trial.trainer.max_epochs = _epochs(cfg)
    for key, value in settings.items():
        trial[key] = value
    return trial


def _epochs(cfg: DictConfig) -> int:
    return min(cfg.search.epochs, cfg.trainer.max_epochs)


def _command(cfg: DictConfig, overrides: list[str], settings: Settings) -> list[str]:
    """Overrides of train.py that run a trial without a search."""
    given = {"test": "false", "trainer.max_epochs": _epochs(cfg), **settings}
    keys = [override.split("=", 1)[0].lstrip("+~") for override in overrides]
    kept = [
        override
        for key, override in zip(keys, overrides)
        if key not in ("experiment", *given) and not key.startswith("search.")
    ]
    return [*kept, *(f"{key}={value}" for key, value in given.items())]


def _words(settings: Settings) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _print_trials(ended: list[FrozenTrial], space: dict[str, CategoricalDistribution]) -> None:
    table = Table("trial", *space, "epochs", MONITOR, "", box=None)
    for number, trial in enumerate(ended, 1):
        values = [str(trial.params[key]) for key in space]
        epochs = trial.intermediate_values
        best = f"{max(epochs.values()):.4f}" if epochs else "diverged"
        pruned = "given up" if trial.state == TrialState.PRUNED else ""
        table.add_row(str(number), *values, str(len(epochs)), best, pruned)
    Console(width=max(Console().width, 100)).print(table)


def _recipe(cfg: DictConfig, study: optuna.Study, split_hash: str, overrides: list[str]) -> str:
    """The best trial as a file of conf/recipe, with what it cost above it."""
    ended, best = _ended(study), study.best_trial
    whole = sum(trial.state == TrialState.COMPLETE for trial in ended)
    searched = [f"{k} {list(v.choices)}" for k, v in best.distributions.items()]
    name, now = f"{variant_name(cfg)} on {cfg.data.name}", datetime.now(timezone.utc)
    values = {key: best.params.get(key, cfg[key]) for key in RECIPE_KEYS} | {"recipe": "tuned"}
    return "\n".join(
        [
            "# @package _global_",
            f"# {name}: validation NDCG@10 {best.value:.4f}, the best of {len(ended)} trials",
            f"# ({whole} to their end) of at most {_epochs(cfg)} epochs.",
            f"# {shlex.join(['python', 'train.py', *overrides])}",
            f"# Searched: {'; '.join(searched)}",
            f"# Commit {commit()}, split {split_hash[:12]}, {now:%Y-%m-%d}",
            yaml.safe_dump(values, sort_keys=False),
        ]
    )
