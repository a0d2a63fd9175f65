"""What is measured in each epoch, and what a person sees of it."""

from __future__ import annotations

import logging
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Lightning's, which forgets what was best when the folder of a run has moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = state_dict["dirpath"], str(self.dirpath)
        moved = {
            k: v.replace(old, new, 1) if isinstance(v, str) else v for k, v in state_dict.items()
        }
        models = state_dict["best_k_models"]
        moved["best_k_models"] = {k.replace(old, new, 1): v for k, v in models.items()}
        super().load_state_dict(moved)


class EpochRecord(L.Callback):
    """Measures each epoch, hands its row to every logger and prints it as one line.

    Row: `epoch`, `train/loss` (mean over targets), `val/*`, `train/seconds`, `val/seconds`,
    `train/targets_per_s`, `memory/peak_mb` (since training began: resident set on CPU, allocated
    on CUDA).
    """

    def __init__(self) -> None:
        self.best = (-1.0, 0)  # val/ndcg@10, minus its epoch

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = tuple(state_dict["best"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reset_peak_memory(pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()
        zero = torch.zeros((), dtype=torch.float64, device=pl_module.device)
        self.loss_sum, self.targets = zero, zero.long()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        n_targets = batch.n_targets  # stays on the device, like the sums: no sync
        self.loss_sum = self.loss_sum + outputs["loss"].detach() * n_targets
        self.targets = self.targets + n_targets

    def on_validation_start(self, trainer, pl_module) -> None:
        self.validation_start = time.perf_counter()
        if not torch.isfinite(self.loss_sum):  # before the ranks of such a model fail
            raise ValueError(
                f"training diverged in epoch {trainer.current_epoch + 1}: the loss is "
                f"{float(self.loss_sum)}; lower lr"
            )

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validation_seconds = time.perf_counter() - self.validation_start

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        seconds, targets = self.validation_start - self.start, int(self.targets)
        validation = {f"val/{k}": v for k, v in pl_module.last_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "train/loss": float(self.loss_sum) / targets,
            **validation,
            "train/seconds": round(seconds, 3),
            "val/seconds": round(self.validation_seconds, 3),
            "train/targets_per_s": round(targets / seconds, 1),
            "memory/peak_mb": round(peak_memory_mb(pl_module.device), 1),
        }
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.current_epoch)
        self.best = max(self.best, (row["val/ndcg@10"], -row["epoch"]))  # ties: the earlier
        log.info(
            "epoch %d/%d  loss %.4f  val ndcg@10 %.4f hr@10 %.4f (best %.4f in epoch %d)  "
            "%.1f s + %.1f s val, %s targets/s",
            row["epoch"],
            trainer.max_epochs,
            row["train/loss"],
            row["val/ndcg@10"],
            row["val/hr@10"],
            self.best[0],
            -self.best[1],
            seconds,
            self.validation_seconds,
            f"{targets / seconds:,.0f}",
        )


class EpochBar(L.Callback):
    """A progress bar over the epoch's batches: loss, targets/s, time left. Only on a terminal."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} targets/s"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            transient=True,
            disable=not sys.stdout.isatty(),
        )
        self.bar = self.progress.add_task(
            "",
            total=trainer.num_training_batches,
            epoch=trainer.current_epoch + 1,
            loss=float("nan"),
            rate=0.0,
        )
        self.targets = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self.start = self.drawn = time.perf_counter()
        self.progress.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.progress.disable:
            return
        self.targets = self.targets + batch.n_targets
        self.progress.advance(self.bar)
        now = time.perf_counter()
        if now - self.drawn > 0.2:  # reading the loss waits for the device: not at every step
            self.drawn, rate = now, float(self.targets) / (now - self.start)
            self.progress.update(self.bar, loss=float(outputs["loss"]), rate=rate)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.progress.stop()

    def on_exception(self, trainer, pl_module, exception) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of what this process did before, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak of this process in MB (1e6 bytes): resident set on CPU, allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
