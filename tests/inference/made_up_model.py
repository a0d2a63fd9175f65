"""Recommenders of small models with random weights and raw ids `i1`, `i2`, ..."""

import inspect
from pathlib import Path

import torch
from batches import scramble

from recblr.inference import Recommender
from recblr.models.fpmc import FPMC
from recblr.models.gru4rec import GRU4Rec
from recblr.models.lrurec import LRURec
from recblr.models.recblr import RecBLR
from recblr.models.sasrec import SASRec

V, LONGEST = 60, 20
CLASSES = {"recblr": RecBLR, "gru4rec": GRU4Rec, "lrurec": LRURec, "fpmc": FPMC, "sasrec": SASRec}
USERS = ["ann", "bob"]  # of the training log


def about(name="recblr", n_items=V, **rest):
    target = f"recblr.models.{name}.{CLASSES[name].__name__}"
    config = {"model": {"_target_": target}, "datamodule": {"max_length": LONGEST}}
    return {
        "config": config,
        "split_hash": "0" * 64,
        "item_ids": ["", *(f"i{item}" for item in range(1, n_items + 1))],
        "item_counts": [0, *(item % 7 for item in range(1, n_items + 1))],
        **rest,
    }


def made_up(name="recblr", n_items=V, seed=0, **changes):
    torch.manual_seed(seed)
    cls = CLASSES[name]
    sizes = {"d_model": 16, "n_users": len(USERS), "max_length": LONGEST} | changes
    accepted = inspect.signature(cls).parameters
    model = cls(n_items, **{key: value for key, value in sizes.items() if key in accepted})
    rest = {"user_ids": USERS} if name == "fpmc" else {}
    std = 0.1 if name == "gru4rec" else 0.3  # chaos would amplify any rounding
    return Recommender(scramble(model, std), about(name, n_items, **rest))


def checkpoint(rec: Recommender, folder: Path, **changes) -> Path:
    """As `train.py` leaves it. changes: arguments of the model that the config has anew."""
    sizes = {"d_model": 16, "max_length": LONGEST}
    node = rec.about["config"]["model"]
    accepted = inspect.signature(type(rec.model)).parameters
    node = node | {key: value for key, value in sizes.items() if key in accepted} | changes
    about = rec.about | {"config": rec.about["config"] | {"model": node}}
    weights = {f"model.{name}": weight for name, weight in rec.model.state_dict().items()}
    torch.save({"state_dict": weights, "recblr": about}, folder / "best.ckpt")
    return folder / "best.ckpt"
