"""Whole training steps against the speed of the matrix product, and an epoch against its steps.

The epoch is one of train.py, from its start to the start of the next, with loader, callbacks and
checkpoints; the validation loop is left out.

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
from omegaconf import OmegaConf
from timing import ROOT, Row, Setting, Spread, measure, record

from recblr.data.batch import SequenceBatch
from recblr.data.datamodule import SequenceDataModule
from recblr.data.synthetic import SyntheticLog
from recblr.models.recblr import RecBLR
from recblr.ops.backends import resolve_backend
from recblr.training.module import SequentialRecommender
from recblr.training.objectives import CrossEntropy
from recblr.training.validate import build, cpu_has_bf16

WIDTH, CHANNELS, LAYERS = 64, 128, 2
# rows, items of the catalogue, rows of a sequence, share of the product's speed that is asked
CASES = {
    "ML-1M 20k rows": (20480, 3416, 160, 0.60),
    "ML-1M 2048 targets": (2048, 3416, 160, None),
    "Beauty 16k rows": (16384, 12101, 8, 0.50),
    "Beauty 2048 targets": (2048, 12101, 8, None),
}
SCAN = resolve_backend("auto", "cpu", torch.float32)  # what the model runs
PRODUCT = 2048  # rows and columns of the matrices whose product sets the speed
LOG = {"n_users": 22_000, "n_items": 12_000, "mean_length": 9, "zipf": 0.5}  # Beauty's shape
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


def module_and_optimizer(items: int, precision: str = "32-true"):
    torch.manual_seed(0)
    model = RecBLR(items, d_model=WIDTH, n_layers=LAYERS, expansion=2, dropout=0.2)
    module = SequentialRecommender(model, items, CrossEntropy(), precision=precision)
    return module, torch.optim.Adam(module.parameters(), 1e-3, fused=True)


def step(module, optimizer, batch) -> None:
    optimizer.zero_grad()
    module.training_step(batch).backward()
    optimizer.step()


def product_speed(repeats: int) -> float:
    """FLOP per second."""
    a, b = torch.randn(2, PRODUCT, PRODUCT)
    return 2 * PRODUCT**3 / measure(lambda: torch.mm(a, b), repeats).median


def bench_steps(repeats: int) -> list[Row]:
    rows = []
    for name, (n, items, length, bar) in CASES.items():
        batch, spent = batch_of(n, items, length), {}
        for precision in ("32-true", "bf16-mixed"):
            module, optimizer = module_and_optimizer(items, precision)
            spent[precision] = measure(partial(step, module, optimizer, batch), repeats)
            rows.append(Row("step", f"{name} {precision}", SCAN, "ms", *scaled(spent[precision])))
        limit = product_speed(repeats)
        share = flop(n, items) / spent["32-true"].median / limit
        half = spent["32-true"].median / spent["bf16-mixed"].median
        rows.append(Row("step", f"{name} 32-true", SCAN, "share of mm", share))
        verdict = f"{judged(share >= bar)} at least {bar:.0%}" if bar else "no bar"
        print(f"{name}: {1e3 * spent['32-true'].median:.0f} ms, {share:.0%} of the speed of mm")
        print(f"    ({limit / 1e9:.0f} GFLOP/s)  {verdict}")
        bf16 = f"{judged(half >= HALF_FASTER)} at least {HALF_FASTER}x"
        print(f"    bf16-mixed {half:.2f}x faster  {bf16 if cpu_has_bf16() else 'no bar: no bf16'}")
    return rows


def bench_epoch(repeats: int) -> list[Row]:
    """An epoch as train.py runs it, with its trainer, callbacks and checkpoints, over its steps."""
    data = SequenceDataModule(SyntheticLog(**LOG), 50, 2048, 512, seed=0)
    data.load()
    items, timer = data.store.n_items, EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        module, _ = module_and_optimizer(items)
        module.optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
        module.identity = {"item_ids": data.store.item_ids.tolist()}
        nodes = OmegaConf.load(ROOT / "conf/callbacks/default.yaml")
        nodes.best.dirpath = nodes.last.dirpath = folder
        trainer = build(
            OmegaConf.load(ROOT / "conf/trainer/default.yaml"),
            max_epochs=1 + repeats,
            limit_val_batches=1,
            accelerator="cpu",
            callbacks=[timer, *(build(node) for node in nodes.values())],
            logger=False,
        )
        trainer.fit(module, datamodule=data)
    whole = Spread.of(timer.seconds()[1:])
    module, optimizer = module_and_optimizer(items)
    batches = list(data.train_dataloader())
    alone = measure(lambda: [step(module, optimizer, b) for b in batches], repeats, warmup=1)
    over = whole.median / alone.median
    print(f"an epoch of {len(batches)} steps: {whole.median:.2f} s, its steps {alone.median:.2f} s")
    print(f"    {over:.3f}x  {judged(over <= EPOCH_OVER)} at most {EPOCH_OVER}x")
    case = "Beauty shape, 2048 targets 32-true"
    return [
        Row("epoch", f"{case}, without validation", SCAN, "s", *whole),
        Row("epoch", f"{case}, steps alone", SCAN, "s", *alone),
    ]


class EpochTimer(L.Callback):
    """Seconds from the start of an epoch to the start of the next, without the validation loop.

    As the first callback it stops the clock of that loop before the others, so what they do there
    counts: early stopping, both checkpoints, the record of the epoch.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.validation: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.starts.append(time.perf_counter())

    on_train_end = on_train_epoch_start

    def on_validation_start(self, *_) -> None:
        self.validation.append(-time.perf_counter())

    def on_validation_end(self, *_) -> None:
        self.validation[-1] += time.perf_counter()

    def seconds(self) -> list[float]:
        return [
            end - start - validation
            for start, end, validation in zip(self.starts, self.starts[1:], self.validation)
        ]


def profile() -> None:
    """Shares of a step by operation, for the two shapes."""
    for name in ("ML-1M 20k rows", "Beauty 16k rows"):
        n, items, length, _ = CASES[name]
        batch, (module, optimizer) = batch_of(n, items, length), module_and_optimizer(items)
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
