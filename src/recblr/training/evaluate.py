"""Rank a whole split: the trained model, the floors, and what bounds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from recblr.data.datamodule import Part, SequenceDataModule
from recblr.data.loader import PackedLoader
from recblr.data.sequences import SequenceStore
from recblr.models.base import Scorer
from recblr.models.markov import Markov
from recblr.models.popularity import Popularity
from recblr.models.saved import CHECKPOINT_KEY, read_checkpoint
from recblr.training.module import SequentialRecommender

Metrics = dict[str, float]


def evaluate(
    model: Scorer,
    loader: PackedLoader,
    n_items: int,
    accelerator: str = "cpu",
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Rank every target of the loader on `cpu` or `cuda`.

    Returns the metrics (`{"hr@10": .., .., "users": n}`) and the counts behind them, int64 (U,)
    each: user, item, higher, equal.
    """
    module = SequentialRecommender(model, n_items)
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator=accelerator,
        devices=1,
    )
    trainer.test(module, loader, verbose=False)
    return module.last_metrics | {"users": module.ranked}, module.ranks


def raw_ranks(store: SequenceStore, ranks: dict[str, Tensor]) -> dict[str, Any]:
    """The counts of `evaluate` under the ids of the log: columns of `test_ranks.parquet`."""
    return {
        "user_id": store.user_ids[ranks["user"]],
        "item_id": store.item_ids[ranks["item"]],
        "higher": ranks["higher"].int(),
        "equal": ranks["equal"].int(),
    }


def floor_metrics(data: SequenceDataModule, split: Part) -> dict[str, Metrics]:
    """Metrics of the floors and, where the log knows it, of the best possible ranking."""
    loader, n_items = data.evaluation_loader(split), data.store.n_items
    scorers: dict[str, Scorer] = {"popularity": Popularity(n_items), "markov": Markov(n_items)}
    for floor in scorers.values():
        floor.fit(**data.training_part())
    if hasattr(data.log, "ceiling"):
        scorers["ceiling"] = data.log.ceiling(data.store)
    return {n: evaluate(scorer, loader, n_items, "cpu")[0] for n, scorer in scorers.items()}


def epochs_done(path: Path, split_hash: str) -> tuple[int, bool]:
    """Whole epochs behind a checkpoint of that split, and whether training ended there."""
    checkpoint = read_checkpoint(path)
    trained_on = checkpoint[CHECKPOINT_KEY]["split_hash"]
    if trained_on != split_hash:
        raise ValueError(
            f"{path}: trained on other data (split {trained_on[:12]}, now {split_hash[:12]}); give "
            "the log that it was trained on as data.path, or train anew with overwrite=true"
        )
    return checkpoint["epoch"] + 1, checkpoint[CHECKPOINT_KEY]["done"]
