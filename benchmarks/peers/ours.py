"""A model of ours as `train.py` builds it: configuration, data, Lightning module, trainer."""

from __future__ import annotations

from pathlib import Path

import lightning
from clock import Clock, Job, run
from hydra import compose, initialize_config_dir

from recblr.training.cli import keep_memory
from recblr.training.loggers import quiet_lightning
from recblr.training.module import SequentialRecommender
from recblr.training.validate import build, build_model

CONF = Path(__file__).resolve().parents[2] / "conf"


def main(job: Job) -> None:
    keep_memory()  # as train.py does
    clock = Clock(job)
    overrides = [*job.settings, f"paths.data={job.folder}", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    quiet_lightning()
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    n_items, epoch = data.store.n_items, data.train_dataloader()
    module = SequentialRecommender(
        build_model(cfg.model, n_items, data.store.n_users),
        n_items,
        build(cfg.objective),
        build(cfg.optimizer),
        precision=cfg.precision,
    )
    stop = clock.callback(lightning.Callback, lambda batch: batch.targets.count_nonzero())
    build(
        cfg.trainer,
        callbacks=[stop],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    ).fit(module, datamodule=data)
    rows = round(len(epoch.rows) / len(epoch))
    clock.report(epoch.n_targets, rows, n_items + 1, "recblr", "torch", "lightning", "numpy")


if __name__ == "__main__":
    run(main)
