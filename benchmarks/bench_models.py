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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench_epoch import LOG
from bench_peers import DATA, figures, job_of, parsed, parser_of, train
from peers.clock import Job
from timing import Row, Setting, Spread, record

BASE = "recblr"
MODELS = (BASE, "sasrec", "lrurec", "gru4rec", "narm", "caser", "fpmc", "bert4rec", "fmlprec")
SHAPES = {  # of the synthetic logs
    "beauty": LOG,
    "ml_1m": {"n_users": 6_000, "n_items": 3_400, "mean_length": 165, "zipf": 0.5},
}


def bench(case: str, job: Job, models: Sequence[str], rounds: int) -> Iterator[list[Row]]:
    """Rows of each model in turn; prints its line. of RecBLR: share of its targets a CPU second."""
    columns = ("targets/CPU s", "of RecBLR", "targets/s", "s/epoch", "peak MB")
    print(f"\n{case}\n{'':10}" + "".join(f"{column:>15}" for column in columns), flush=True)
    base = None
    for model in models:
        own = replace(job, settings=[*job.settings, f"model={model}"])
        try:
            results = [
                train("ours.py", own, Path(sys.executable), "default") for _ in range(rounds)
            ]
        except RuntimeError as error:
            raise SystemExit(f"{case}, {model}: {error}") from None
        by_round = [figures(result) for result in results]
        spreads = {unit: Spread.of([row[unit] for row in by_round]) for unit in by_round[0]}
        median = {unit: spread.median for unit, spread in spreads.items()}
        if model == BASE:
            base = median["targets/cpu_s"]
        cells = (
            f"{median['targets/cpu_s']:,.0f}",
            f"{median['targets/cpu_s'] / base:.2f}" if base else "-",
            f"{median['targets/s']:,.0f}",
            f"{median['s/epoch']:,.1f}",
            f"{median['peak_mb']:,.0f}",
        )
        print(f"{model:10}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
        yield [Row("model", case, model, unit, *spread) for unit, spread in spreads.items()]


def run(arguments: argparse.Namespace) -> None:
    versions = ("torch", "numba", "lightning")
    setting = Setting.now(*versions)._replace(threads=arguments.threads)
    print(f"{setting.device}, {setting.threads} threads, load {setting.load:.2f}")
    models = [model for model in MODELS if model in arguments.only]
    for name, data in DATA.items():
        path: Path | None = getattr(arguments, name)
        log, case = ["data=synthetic"], f"{data.name} shape"
        log += [f"data.{key}={value}" for key, value in SHAPES[name].items()]
        if path is not None:
            log, case = ["data=custom", f"data.path={path.absolute()}"], data.name
        with tempfile.TemporaryDirectory(prefix="bench_models-") as folder:
            job = job_of(data, log, folder, "", arguments)
            for rows in bench(f"{case} L{data.max_length}", job, models, arguments.rounds):
                record(arguments.out, rows, setting)
    print(f"recorded in {arguments.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(str(__doc__), rounds=1, seconds=10)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="these (all)")
    run(parsed(parser, argv))


if __name__ == "__main__":
    main()
