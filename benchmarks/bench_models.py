"""Training speed and memory of every model that is ours, with its own objective and rows.

Each figure is of a fresh process and of training steps alone, as in bench_peers.py, with whose
data sets' longest history and dropout each model trains as its YAML says: FMLP-Rec on prefix rows,
BERT4Rec by hiding a part of what counts as its targets here, all others at every position. A step
has 2048 targets. Peak memory is the whole process's. A MB is 10**6 bytes.

Without files, on synthetic logs of the two shapes.

Example: python benchmarks/bench_models.py --beauty amazon-beauty.txt.gz --ml-1m ml-1m.txt.gz
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench_peers import (
    BATCH_TARGETS,
    D_MODEL,
    DATA,
    N_LAYERS,
    figures,
    parsed,
    parser_of,
    train,
)
from peers.clock import Job
from timing import Row, Setting, Spread, record

MODELS = ("recblr", "sasrec", "lrurec", "gru4rec", "narm", "caser", "fpmc", "bert4rec", "fmlprec")
SHAPES = {  # of the synthetic logs
    "beauty": {"n_users": 22_000, "n_items": 12_000, "mean_length": 9, "zipf": 0.5},
    "ml_1m": {"n_users": 6_000, "n_items": 3_400, "mean_length": 165, "zipf": 0.5},
}


def bench(case: str, job: Job, models: Sequence[str], rounds: int) -> list[Row]:
    """Rows of the models, measured in turn; prints a line for each."""
    print(f"\n{case}\n{'':10}{'targets/CPU s':>15}{'s/epoch':>10}{'peak MB':>10}", flush=True)
    rows = []
    for model in models:
        own = replace(job, settings=[*job.settings, f"model={model}"])
        measured = [
            figures(train("ours.py", own, Path(sys.executable), "default")) for _ in range(rounds)
        ]
        spreads = {unit: Spread.of([one[unit] for one in measured]) for unit in measured[0]}
        rows += [Row("model", case, model, unit, *spread) for unit, spread in spreads.items()]
        speed, epoch, peak = (spreads[u].median for u in ("targets/cpu_s", "s/epoch", "peak_mb"))
        print(f"{model:10}{speed:15,.0f}{epoch:10,.1f}{peak:10,.0f}", flush=True)
    return rows


def run(arguments: argparse.Namespace) -> None:
    versions = ("torch", "numba", "lightning")
    setting = Setting.now(*versions)._replace(threads=arguments.threads)
    print(f"{setting.device}, {setting.threads} threads, load {setting.load:.2f}")
    for name, data in DATA.items():
        path: Path | None = getattr(arguments, name)
        log, case = ["data=synthetic"], f"{data.name} shape"
        log += [f"data.{key}={value}" for key, value in SHAPES[name].items()]
        if path is not None:
            log, case = ["data=custom", f"data.path={path.absolute()}"], data.name
        with tempfile.TemporaryDirectory(prefix="bench_models-") as folder:
            job = Job(
                path="",
                store="",
                folder=folder,
                settings=[*data.settings, *log],
                max_length=data.max_length,
                dropout=data.dropout,
                d_model=D_MODEL,
                n_layers=N_LAYERS,
                batch_targets=BATCH_TARGETS,
                warmup=arguments.warmup,
                steps=arguments.steps,
                seconds=arguments.seconds,
                threads=arguments.threads,
            )
            rows = bench(f"{case} L{data.max_length}", job, arguments.only, arguments.rounds)
        record(arguments.out, rows, setting)
    print(f"recorded in {arguments.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(str(__doc__), rounds=1, seconds=10)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="these (all)")
    run(parsed(parser, argv))


if __name__ == "__main__":
    main()
