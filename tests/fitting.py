"""A loaded data module, and a small RecBLR trained on it, for tests."""

import logging

import lightning as L
import torch

from recblr.data.datamodule import SequenceDataModule
from recblr.models.recblr import RecBLR
from recblr.training.module import SequentialRecommender
from recblr.training.objectives import CrossEntropy


def loaded(log, **arguments):
    data = SequenceDataModule(log, **{"seed": 5} | arguments)
    data.load()
    return data


def trained(data, epochs, lr, dropout=0.0):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(1)
    n_items = data.store.n_items
    model = RecBLR(n_items, d_model=32, dropout=dropout)
    module = SequentialRecommender(
        model, n_items, CrossEntropy(), lambda p: torch.optim.Adam(p, lr=lr)
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return model
