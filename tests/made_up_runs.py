"""Run folders with figures that were made up, for tests."""

import numpy as np
import torch

from recblr.evaluation.metrics import RankingMetrics
from recblr.run_folder import RunFolder


def write_run(
    path, model="recblr", seed=1, skill=0.5, dataset="amazon-beauty", split_hash="aa" * 32,
    command="", finished=True, users=300, scan=None, steps=1.0, seconds=2.0,
    cpu="CPU", n_evaluated=None, counts=(22363, 198502), order="file", **changes,
):  # fmt: skip
    """A finished run whose ranks are drawn around `skill`, the share of users ranked first."""
    run = RunFolder(path)
    config = {
        "model": {"_target_": f"recblr.models.{model}.Model"},
        "data": {"name": dataset},
        "datamodule": {"target_mode": "all_positions", "max_length": 50, "mask_history": False},
        "objective": {"_target_": "recblr.training.objectives.CrossEntropy"},
        "ablation": "default", "recipe": "paper", "seed": seed, "smoke": False,
        "trainer": {"limit_train_batches": steps},
    } | changes  # fmt: skip
    environment = {
        "command": command or f"python train.py model={model} data={dataset} seed={seed}",
        "commit": "abc", "python": "3.11", "versions": {"torch": "2.13"}, "cpu": cpu,
        "threads": 2, "cores": 2, "gpu": None, "scan": scan,
    }  # fmt: skip
    run.start(config, environment)
    for epoch in range(1, 4):
        run.append_epoch(
            {"epoch": epoch, "val/ndcg@10": 0.1 * epoch, "train/seconds": seconds,
             "val/seconds": 1, "train/targets_per_s": 10 / seconds, "memory/peak_mb": 50}
        )  # fmt: skip
    draw = np.random.default_rng(seed)
    higher = np.where(draw.random(users) < skill, draw.integers(0, 5, users), 50)
    metrics = RankingMetrics()
    metrics.update(torch.tensor(higher), torch.zeros(users, dtype=torch.int64))
    values = {name: float(value) for name, value in metrics.compute().items()}
    about = {"users": users, "split_hash": split_hash, "order": order, "interactions": counts[1]}
    about |= {
        "n_users": counts[0],
        "n_items": 40,
        "n_targets": 1000,
        "n_evaluated": n_evaluated or 2 * users,
    }
    run.write_json("test_metrics.json", values | about)
    run.write_json("floors.json", {"popularity": {k: v / 4 for k, v in values.items()}})
    ids = np.array([f"u{user}" for user in draw.permutation(users)], object)
    order = np.argsort([int(user[1:]) for user in ids])
    columns = {"higher": higher[order].astype(np.int32), "equal": np.zeros(users, np.int32)}
    run.write_ranks({"user_id": ids, "item_id": ids} | columns)
    if finished:
        run.finish("card")
    return run
