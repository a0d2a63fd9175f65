"""The one LightningModule: a step is `objective(model, batch)`, an evaluation is ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.evaluation.metrics import RankingMetrics
from recblr.models.base import Scorer, block_scorer
from recblr.models.saved import CHECKPOINT_KEY
from recblr.ops.rank import count_ranks

# cuDNN's GRU and convolutions would round their inputs to TF32: float32 is float32 on every device.
torch.backends.cudnn.allow_tf32 = False

Precision = Literal["32-true", "bf16-mixed"]


class SequentialRecommender(L.LightningModule):
    """Trains and evaluates any model of `recblr.models.base`.

    identity: plain containers stored in every checkpoint (config, split hash, raw item ids), so
    that a checkpoint needs no flags; beside them `done`: whether this was the last epoch.
    precision: `bf16-mixed` trains with bfloat16 products; recurrence, softmax, weights and every
    evaluation stay in float32. seed: with the epoch, fixes every dropout mask and negative of that
    epoch, whatever was drawn before it.
    """

    def __init__(
        self,
        model: Scorer,
        n_items: int,
        objective: Callable[[Any, SequenceBatch], Tensor] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        identity: dict[str, Any] | None = None,
        precision: Precision = "32-true",
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.n_items = model, n_items
        self.objective, self.optimizer, self.identity = objective, optimizer, identity
        self.half, self.seed = precision == "bf16-mixed", seed
        self.metrics = RankingMetrics()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return self.optimizer(self.parameters())

    def on_train_epoch_start(self) -> None:
        state = np.random.SeedSequence([self.seed, self.current_epoch]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: SequenceBatch) -> Tensor:
        assert self.objective is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.objective(self.model, batch)

    def warm_up(self, batch: SequenceBatch) -> float:
        """Seconds of one step that changes nothing: kernels are compiled in it, not in epoch 1."""
        start = time.perf_counter()
        with torch.random.fork_rng():
            self.training_step(batch).backward()
        self.zero_grad()
        return time.perf_counter() - start

    def validation_step(self, batch: SequenceBatch) -> None:
        self.metrics.update(*self._count(batch))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_start(self) -> None:
        # Filled in place: tensors kept from each batch would lie between the freed blocks of
        # scores, and the heap would grow by a block per batch (600 MB on Beauty).
        users = len(self.trainer.test_dataloaders.rows)
        names = ("user", "item", "higher", "equal")
        self.ranks = {name: torch.empty(users, dtype=torch.int64) for name in names}
        self.ranked = 0

    def test_step(self, batch: SequenceBatch) -> None:
        higher, equal = self._count(batch)
        self.metrics.update(higher, equal)
        rank = {"user": batch.user_ids, "item": batch.targets, "higher": higher, "equal": equal}
        done = slice(self.ranked, self.ranked + len(batch))
        for name, value in rank.items():
            self.ranks[name][done] = value
        self.ranked = done.stop

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        over = self.current_epoch + 1 == self.trainer.max_epochs
        done = bool(self.trainer.should_stop or over)
        checkpoint[CHECKPOINT_KEY] = (self.identity or {}) | {"done": done}

    def _count(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        return count_ranks(
            block_scorer(self.model, batch),
            batch.targets,
            self.n_items,
            seen=batch.seen,
            cu_seen=batch.cu_seen,
        )

    def _log_metrics(self, split: str) -> None:
        values = self.metrics.compute()
        self.metrics.reset()
        for name, value in values.items():  # float64 would be stored as float32
            self.log(f"{split}/{name}", value.float(), logger=False)
        self.last_metrics = {name: float(value) for name, value in values.items()}
