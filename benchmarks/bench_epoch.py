"""Whole training steps against the speed of the matrix product, and an epoch against its steps.

python benchmarks/bench_epoch.py [--profile]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import torch
from bench_bd_lru import judged, scaled
from timing import ROOT, Row, Setting, Spread, measure, record

from recblr.data.batch import SequenceBatch
from recblr.data.datamodule import SequenceDataModule
from recblr.data.synthetic import SyntheticLog
from recblr.models.recblr import RecBLR
from recblr.training.module import SequentialRecommender
from recblr.training.objectives import CrossEntropy
from recblr.training.validate import cpu_has_bf16

WIDTH, CHANNELS, LAYERS = 64, 128, 2
# rows, items of the catalogue, rows of a sequence, share of the product's speed that is asked
CASES = {
    "ML-1M 20k rows": (20480, 3416, 160, 0.60),
    "ML-1M 2048 targets": (2048, 3416, 160, None),
    "Beauty 16k rows": (16384, 12101, 8, 0.50),
    "Beauty 2048 targets": (2048, 12101, 8, None),
}
HALF_FASTER, EPOCH_OVER = 1.7, 1.1


def batch_of(rows: int, items: int, length: int) -> SequenceBatch:
    random = np.random.default_rng(0)
    cu_seqlens = torch.from_numpy(np.append(np.arange(0, rows, length), rows))
    inputs, targets = (torch.from_numpy(random.integers(1, items + 1, rows)) for _ in range(2))
    users = torch.arange(len(cu_seqlens) - 1)
    return SequenceBatch(inputs, cu_seqlens, targets, users, cu_seqlens)


def flop(rows: int, items: int) -> float:
    """Of the products of a step, forward and backward: 6 for each multiply-add of the forward."""
    per_layer = 3 * WIDTH * CHANNELS + 2 * CHANNELS**2 + 8 * WIDTH**2
    return 6 * rows * (LAYERS * per_layer + (items + 1) * WIDTH)


def trainer_of(items: int, precision: str = "32-true"):
    torch.manual_seed(0)
    model = RecBLR(items, d_model=WIDTH, n_layers=LAYERS, expansion=2, dropout=0.2)
    module = SequentialRecommender(model, items, CrossEntropy(), precision=precision)
    return module, torch.optim.Adam(module.parameters(), 1e-3, fused=True)


def step(module, optimizer, batch) -> None:
    optimizer.zero_grad()
    module.training_step(batch).backward()
    optimizer.step()


def product_speed(repeats: int) -> float:
    """FLOP per second of a 2048^3 product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / measure(lambda: torch.mm(a, b), repeats).median


def bench_steps(repeats: int) -> list[Row]:
    rows = []
    for name, (n, items, length, bar) in CASES.items():
        batch, spent = batch_of(n, items, length), {}
        for precision in ("32-true", "bf16-mixed"):
            module, optimizer = trainer_of(items, precision)
            spent[precision] = measure(partial(step, module, optimizer, batch), repeats)
            rows.append(Row("step", name, precision, "ms", *scaled(spent[precision])))
        limit = product_speed(repeats)
        share = flop(n, items) / spent["32-true"].median / limit
        half = spent["32-true"].median / spent["bf16-mixed"].median
        rows.append(Row("step", name, "32-true", "share of mm", share))
        verdict = f"{judged(share >= bar)} at least {bar:.0%}" if bar else "no bar"
        print(f"{name}: {1e3 * spent['32-true'].median:.0f} ms, {share:.0%} of the speed of mm")
        print(f"    ({limit / 1e9:.0f} GFLOP/s)  {verdict}")
        bf16 = f"{judged(half >= HALF_FASTER)} at least {HALF_FASTER}x"
        print(f"    bf16-mixed {half:.2f}x faster  {bf16 if cpu_has_bf16() else 'no bar: no bf16'}")
    return rows


def bench_epoch(repeats: int) -> list[Row]:
    """An epoch with loader, loss record and checkpoints, over its steps alone."""
    log = SyntheticLog(n_users=22_000, n_items=12_000, mean_length=9, zipf=0.5)
    data = SequenceDataModule(log, 50, 2048, 512, seed=0)
    data.load()
    items = data.store.n_items
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        module, _ = trainer_of(items)
        module.optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
        checkpoint = L.pytorch.callbacks.ModelCheckpoint(folder, save_last=True)
        L.Trainer(
            max_epochs=1 + repeats, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, callbacks=[timer, checkpoint],
            reload_dataloaders_every_n_epochs=1,
        ).fit(module, datamodule=data)  # fmt: skip
    whole = Spread.of(timer.seconds[1:])
    module, optimizer = trainer_of(items)
    batches = list(data.train_dataloader())
    alone = measure(lambda: [step(module, optimizer, b) for b in batches], repeats, warmup=1)
    over = whole.median / alone.median
    print(f"an epoch of {len(batches)} steps: {whole.median:.2f} s, its steps {alone.median:.2f} s")
    print(f"    {over:.3f}x  {judged(over <= EPOCH_OVER)} at most {EPOCH_OVER}x")
    return [
        Row("epoch", "Beauty shape, 2048 targets", "everything", "s", *whole),
        Row("epoch", "Beauty shape, 2048 targets", "steps alone", "s", *alone),
    ]


class EpochTimer(L.Callback):
    """Seconds of each epoch's training, checkpoint included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def profile() -> None:
    """Shares of a step by operation, for the two shapes."""
    for name in ("ML-1M 20k rows", "Beauty 16k rows"):
        n, items, length, _ = CASES[name]
        batch, (module, optimizer) = batch_of(n, items, length), trainer_of(items)
        for _ in range(3):
            step(module, optimizer, batch)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            for _ in range(5):
                step(module, optimizer, batch)
        print(name)
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="shares of a step, no figures kept")
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.profile:
        return profile()
    setting = Setting.now("torch", "numba", "lightning")._replace(threads=options.threads)
    record(options.out, bench_steps(options.repeats) + bench_epoch(3), setting)


if __name__ == "__main__":
    main()
