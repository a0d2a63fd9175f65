"""RecTools' SASRec: its own data set, data loader, Lightning module and trainer."""

from __future__ import annotations

import pandas as pd
from clock import Clock, Job, rows_per_step, run
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main(job: Job) -> None:
    clock, targets = Clock(job), job.window_targets()
    rows = rows_per_step(job, targets)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock.callback(Callback, lambda batch: (batch["y"] != 0).sum())],
        )

    log = job.columns("training")
    interactions = pd.DataFrame(
        {
            Columns.User: log["user"],
            Columns.Item: log["item"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(log["time"], unit="s"),
        }
    )
    model = SASRecModel(
        n_blocks=job.n_layers,
        n_factors=job.d_model,
        dropout_rate=job.dropout,
        session_max_len=job.max_length,
        loss="softmax",
        batch_size=rows,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(interactions))
    clock.report(
        targets.sum(),
        rows,
        model.data_preparator.item_id_map.size,
        *("rectools", "torch", "pytorch-lightning", "numpy"),
    )


if __name__ == "__main__":
    run(main)
