"""RecBole's SASRec: its own data set and split, augmentation, data loader and training epoch.

The augmentation makes a padded row of each target, so a row holds one target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from clock import Clock, Job, run
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

MOST_POSITIONS = 2048 * 50  # of a step, padding included: 512 rows of 200 peak at 10 GB


class Enough(Exception):
    pass


class Timed:
    """A data loader; whoever asks it for a batch has done the step before."""

    def __init__(self, loader, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __iter__(self) -> Iterator:
        for batch in self.loader:
            yield batch
            if self.clock.step(len(batch)):
                raise Enough


def main(job: Job) -> None:
    clock = Clock(job)
    folder = Path(job.folder, "log")
    folder.mkdir()
    log = pd.DataFrame(job.columns("all"))
    log.columns = ["user_id:token", "item_id:token", "timestamp:float"]
    log.to_csv(folder / "log.inter", sep="\t", index=False)
    rows = min(job.batch_targets, MOST_POSITIONS // job.max_length)
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": job.folder,
            "checkpoint_dir": job.folder,
            "use_gpu": False,
            "show_progress": False,
            "state": "WARNING",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": job.max_length,
            "train_batch_size": rows,
            "train_neg_sample_args": None,
            "hidden_size": job.d_model,
            "n_layers": job.n_layers,
            "hidden_dropout_prob": job.dropout,
            "attn_dropout_prob": job.dropout,
        },
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train = data_preparation(config, dataset)[0]
    model = get_model("SASRec")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    timed, epoch = Timed(train, clock), 0
    try:
        while True:
            trainer._train_epoch(timed, epoch)
            epoch += 1
    except Enough:
        pass
    targets = len(train.dataset)
    clock.report(targets, rows, dataset.item_num, "recbole", "torch", "numpy", "pandas")


if __name__ == "__main__":
    run(main)
