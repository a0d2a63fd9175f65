"""RecBLR as `train.py` builds it: its configuration, data module, Lightning module, trainer."""

from __future__ import annotations

import lightning
from clock import Clock, Job, run
from hydra import compose, initialize_config_dir

import recblr.training.cli  # noqa: F401  for what it sets
from recblr.training.loggers import quiet_lightning
from recblr.training.module import SequentialRecommender
from recblr.training.validate import build


def main(job: Job) -> None:
    clock = Clock(job)
    overrides = [
        "data=custom",
        f"data.path={job.path}",
        f"paths.data={job.folder}",
        f"max_length={job.max_length}",
        f"dropout={job.dropout}",
        f"batch_size={job.batch_targets}",
        f"model.d_model={job.d_model}",
        f"model.n_layers={job.n_layers}",
        f"precision={job.precision}",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(job.conf, version_base="1.3"):
        cfg = compose("train", overrides)
    quiet_lightning()
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    n_items, epoch = data.store.n_items, data.train_dataloader()
    module = SequentialRecommender(
        build(cfg.model, n_items=n_items),
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
