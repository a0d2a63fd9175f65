"""RecTools' top 10 for every user of a log, seen items left out, by a SASRec after a few steps."""

from __future__ import annotations

import pandas as pd
from clock import Clock, Job, rows_per_step, run, timed
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main(job: Job) -> None:
    clock = Clock(job)
    log = job.columns("all")
    interactions = pd.DataFrame(
        {
            Columns.User: log["user"],
            Columns.Item: log["item"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(log["time"], unit="s"),
        }
    )

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock.callback(Callback, lambda batch: (batch["y"] != 0).sum())],
        )

    model = SASRecModel(
        n_blocks=job.n_layers,
        n_factors=job.d_model,
        session_max_len=job.max_length,
        loss="softmax",
        batch_size=rows_per_step(job, job.window_targets()),
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )
    dataset = Dataset.construct(interactions)
    model.fit(dataset)
    users = interactions[Columns.User].unique()
    timed(
        lambda: model.recommend(users, dataset, k=10, filter_viewed=True),
        *("rectools", "torch", "pytorch-lightning", "numpy"),
    )


if __name__ == "__main__":
    run(main)
