"""One split log as loaders; here alone does `recblr.data` need lightning."""

from __future__ import annotations

import logging
from typing import Literal, Protocol

import lightning as L
import numpy as np

from recblr.data.loader import PackedLoader
from recblr.data.sequences import Rows, SequenceStore, evaluation_rows, training_rows

log = logging.getLogger(__name__)

Part = Literal["val", "test"]
TargetMode = Literal["all_positions", "prefix"]


class Log(Protocol):
    """What a file of `conf/data` builds: `LogFile` or `SyntheticLog`."""

    name: str

    def load(self, seed: int = 0) -> SequenceStore: ...


class SequenceDataModule(L.LightningDataModule):
    """Loaders over one `SequenceStore`; `load()` first.

    max_length: inputs per row; batch_size: targets per training batch; eval_batch_size: users per
    evaluation batch; eval_users: evaluate at most that many users (drawn with the seed).
    """

    def __init__(
        self,
        log: Log,
        max_length: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        target_mode: TargetMode = "all_positions",
        mask_history: bool = False,
        eval_users: int | None = None,
    ):
        super().__init__()
        sizes = {"max_length": max_length, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "datamodule.eval_users": eval_users}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: must be 1 or more")
        self.log, self.seed = log, seed
        self.max_length = max_length
        self.target_mode: TargetMode = target_mode
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.mask_history, self.eval_users = mask_history, eval_users

    def load(self) -> None:
        """Read, filter, order and split the log, or its cache; sets `store` and `split_hash`."""
        self.store = self.log.load(self.seed)
        self.split_hash = self.store.split_hash
        self.rows = training_rows(self.store, self.max_length, self.target_mode)
        for part in ("val", "test"):
            if (self.store.split.targets(part) < 0).all():
                needs = "3 events"
                if self.store.split.name == "temporal":
                    needs = f"an event of the {part} period and one before it (data.cut)"
                raise ValueError(
                    f"data={self.log.name}: no user has {needs}: nobody to evaluate on {part}"
                )
        if not len(self.rows):
            raise ValueError(
                f"data={self.log.name}: nothing to train: a target needs an event before it, and "
                "leave_one_out keeps the last two of 3 events or more, temporal all after the cut"
            )
        about = self.about
        log.info(
            "%s: %s training targets in %s rows, %s users to evaluate, split %s",
            self.log.name,
            f"{about['n_targets']:,}",
            f"{len(self.rows):,}",
            f"{about['n_evaluated']:,}",
            self.split_hash[:12],
        )

    @property
    def about(self) -> dict:
        """What a figure on this data needs beside it: split, order, counts."""
        return {
            "split_hash": self.split_hash,
            "order": self.store.order,
            "interactions": len(self.store.items),
            "n_users": self.store.n_users,
            "n_items": self.store.n_items,
            "n_targets": int((self.rows.stop - self.rows.target_from).sum()),
            "n_evaluated": int((self.store.split.test >= 0).sum()),
        }

    def training_part(self) -> dict:
        """Arguments of a floor's `fit`: no event later than a user's training part."""
        store = self.store
        return {
            "items": store.items,
            "starts": store.offsets[:-1],
            "stops": store.split.train_stops,
        }

    def train_dataloader(self) -> PackedLoader:
        """This epoch's batches. `reload_dataloaders_every_n_epochs=1` asks anew each epoch."""
        return PackedLoader(
            self.store,
            self.rows,
            self.batch_size,
            budget="targets",
            shuffle=(self.seed, self.trainer.current_epoch if self.trainer else 0),
            one_target=self.target_mode == "prefix",
        )

    def val_dataloader(self) -> PackedLoader:
        return self.evaluation_loader("val")

    def evaluation_loader(self, split: Part) -> PackedLoader:
        """One row and one target per user who has one."""
        rows = evaluation_rows(self.store, split, self.max_length)
        if self.eval_users is not None and self.eval_users < len(rows):
            chosen = np.random.default_rng(self.seed).choice(len(rows), self.eval_users, False)
            rows = Rows(*(column[np.sort(chosen)] for column in vars(rows).values()))
        return PackedLoader(
            self.store,
            rows,
            self.eval_batch_size,
            budget="rows",
            one_target=True,
            seen=self.mask_history,
        )
