"""Where the rows of a run go besides its folder. `metrics.csv` is always one of the loggers."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from recblr.run_folder import Config, RunFolder, model_name

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

    Grouped by data set and model, tagged with both and the seed.
    """
    import wandb

    asked = os.environ.get("WANDB_MODE")
    mode = asked or ("online" if wandb.setup().settings.api_key else "offline")
    if mode == "offline":
        why = "WANDB_MODE" if asked else "not logged in"
        log.info("W&B: offline (%s); `wandb sync` uploads %s/wandb", why, run.path)
    else:
        log.info("W&B: %s, project %s", mode, project)
    data, model, seed = config["data"]["name"], model_name(config), config["seed"]
    tags = [data, model, f"seed{seed}"] + (["smoke"] if config["smoke"] else [])
    started = wandb.init(
        project=project,
        name=f"{data}/{model}/{run.path.name}",
        group=f"{data}/{model}",
        tags=tags,
        config=config,
        dir=run.path,
        mode=mode,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True),
    )
    return WandbLogger(experiment=started)


def quiet_lightning() -> None:
    """Keep Lightning's warnings about the user's run, drop its banners and internal notices."""
    logging.getLogger("lightning").handlers.clear()  # else each message shows twice
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", message=".*num_workers.*")  # our loader has none
    warnings.filterwarnings("ignore", message=".*logging interval.*")  # we log epochs, not steps


def close(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Write the final figures into W&B's summary and end its run; needs no network offline."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(summary)
            logger.experiment.finish()
