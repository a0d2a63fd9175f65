"""Our top 10 for every user of a log, and the evaluation of its test split.

The weights are those of the start: they change no cost.
"""

from __future__ import annotations

import time
from pathlib import Path

from clock import Job, run, timed
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from recblr.inference import Recommender
from recblr.inference.recommender import histories_of
from recblr.models.popularity import training_counts
from recblr.models.saved import build, build_model
from recblr.training.cli import keep_memory
from recblr.training.evaluate import evaluate
from recblr.training.loggers import quiet_lightning

CONF = Path(__file__).resolve().parents[2] / "conf"


def main(job: Job) -> None:
    keep_memory()  # as recommend.py does
    overrides = [*job.settings, f"paths.data={job.folder}", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    quiet_lightning()
    data = build(cfg.datamodule, log=build(cfg.data))
    data.load()
    store = data.store
    model = build_model(cfg.model, store.n_items, store.n_users)
    counts = training_counts(**data.training_part(), size=store.n_items + 1)
    about = {"config": OmegaConf.to_container(cfg, resolve=True), "split_hash": data.split_hash}
    about |= {"item_ids": store.item_ids.tolist(), "item_counts": counts.tolist()}
    recommender = Recommender(model, about)
    histories = list(histories_of(store))
    recommender.recommend(histories[:100])  # kernels are compiled
    start = time.perf_counter()
    evaluate(model, data.evaluation_loader("test"), store.n_items)
    seconds = time.perf_counter() - start
    timed(
        lambda: recommender.recommend(histories, 10).frame(),
        *("recblr", "torch", "numpy"),
        evaluation_s=seconds,
    )


if __name__ == "__main__":
    run(main)
