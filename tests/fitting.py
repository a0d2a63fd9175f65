"""A loaded data module, and small models trained on it as their YAML says, for tests."""

import logging

import lightning as L
import torch
from command_line import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recblr.data.datamodule import SequenceDataModule
from recblr.data.sequences import training_rows
from recblr.training.module import SequentialRecommender
from recblr.training.validate import build, build_model


def loaded(log, **arguments):
    data = SequenceDataModule(log, **{"seed": 5} | arguments)
    data.load()
    return data


def trained(data, epochs, lr, dropout=0.0, model="recblr"):
    """`model=` of width 32, with its objective; trained on the rows of its target_mode."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    overrides = {"model": model, "model.d_model": 32, "max_length": data.max_length}
    overrides |= {"dropout": dropout, "lr": lr}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"{key}={value}" for key, value in overrides.items()])
    data.target_mode = cfg.target_mode
    data.rows = training_rows(data.store, data.max_length, data.target_mode)

    torch.manual_seed(1)
    network = build_model(cfg.model, data.store.n_items, data.store.n_users)
    module = SequentialRecommender(
        network, data.store.n_items, build(cfg.objective), build(cfg.optimizer)
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return network
