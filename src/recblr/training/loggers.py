"""Where the rows of a run go besides its folder. `metrics.csv` is always one of the loggers."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from recblr.run_folder import Config, RunFolder, model_name, variant_name

log = logging.getLogger(__name__)


class MetricsCsv(Logger):
    """`metrics.csv` in the run folder: one row per epoch."""

    name, version = "csv", ""

    def __init__(self, run: RunFolder, config: Config):
        super().__init__()
        self.run = run

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.append_epoch(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has its own file."""


def wandb_logger(run: RunFolder, config: Config, project: str) -> WandbLogger:
    """W&B, online when the user is logged in, else offline: said in one line.

    Grouped by data set and model, tagged with both, ablation, scan and seed; the job type is the
    model with its ablation.
    """
    import wandb

    mode, why = _mode()
    if mode == "offline":
        log.info("W&B: offline (%s); `wandb sync` uploads %s/wandb", why, run.path)
    else:
        log.info("W&B: %s (%s), project %s", mode, why, project)
    data, model, seed = config["data"]["name"], model_name(config), config["seed"]
    tags = [data, model, config["ablation"], f"seed{seed}"]
    tags += [f"scan={config['scan']}"] if "scan" in config["model"] else []
    tags += ["smoke"] if config["smoke"] else []
    started = run.read_json("environment.json")["started"]
    experiment = wandb.init(
        project=project,
        id=hashlib.sha256(f"{run.path.name} {started}".encode()).hexdigest()[:12],
        resume="allow",  # a run that goes on stays one run
        name=f"{data}/{variant_name(config)}/{run.path.name}",
        group=f"{data}/{model}",
        job_type=variant_name(config),
        tags=tags,
        config=config,
        dir=run.path,
        mode=mode,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True),
    )
    return WandbLogger(experiment=experiment)


def quiet_lightning() -> None:
    """Keep Lightning's warnings about the user's run, drop its banners and internal notices."""
    logging.getLogger("lightning").handlers.clear()  # else each message shows twice
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", message=".*num_workers.*")  # our loader has none
    warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty.*")  # it goes on
    warnings.filterwarnings("ignore", message=".*logging interval.*")  # we log epochs, not steps


@contextmanager
def closing(loggers: list[Logger]) -> Iterator[dict[str, Any]]:
    """What is put into the dict ends in W&B's summary; its run is marked failed by an error.

    Needs no network when offline.
    """
    summary: dict[str, Any] = {}
    failed = 1
    try:
        yield summary
        failed = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update(summary)
                logger.experiment.finish(exit_code=failed)


def _mode() -> tuple[str, str]:
    """W&B's mode and the reason for it."""
    import wandb

    if asked := os.environ.get("WANDB_MODE"):
        return asked, "WANDB_MODE"
    try:
        logged_in = wandb.login(prompt=False)
    except wandb.errors.AuthenticationError as error:
        return "offline", f"login failed: {' '.join(str(error).split())}"
    return ("online", "logged in") if logged_in else ("offline", "not logged in")
