"""Our RecBLR and SASRec in training beside the SASRec of RecTools, RePlay and RecBole, on the CPU.

All with full softmax over the catalogue, D = 64, 2 layers, the same longest history, dropout and
training part (every user without its last two events), otherwise their own defaults. RecTools,
RePlay and RecBole each run in an environment of their own, which is built from the package
registry when it is missing; one that cannot be installed or does not run says so and gets no row.

Each figure is of a fresh process and of training steps alone: data preparation and the first
steps are left out. Targets are real ones: padding is none. A step has about 2048 of them, in as
many rows as that takes on average; RecBole, which trains one target a row, has at most 102,400
positions a step with their padding: 512 rows of 200. RecTools and RePlay train only a user's last
`max_length` targets, so their epochs are shorter. Peak memory is the whole process's, its data
included. A MB is 10**6 bytes.

Twice: with the default allocator, and, for all, with glibc told to keep freed memory.

Example: python benchmarks/bench_peers.py --beauty amazon-beauty.txt.gz --ml-1m ml-1m.txt.gz
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers.clock import Job
from timing import ROOT, Row, Setting, Spread, record

from recblr.data.catalog import LogFile
from recblr.run_folder import version

SCRIPTS = Path(__file__).parent / "peers"


class Peer(NamedTuple):
    script: str
    requirements: tuple[str, ...] = ()  # its environment's, beside our torch; none: ours
    settings: tuple[str, ...] = ()  # ours


PEERS = {
    "rectools": Peer("with_rectools.py", ("rectools[torch]==0.19.0",)),
    "replay": Peer("with_replay.py", ("replay-rec[torch]==0.22.0",)),
    # It needs names that numpy 2 and pandas 3 dropped, and its ray the pkg_resources of setuptools.
    "recbole": Peer("with_recbole.py", ("recbole==1.2.1", "numpy<2", "pandas<3", "setuptools<81")),
    "recblr": Peer("ours.py", settings=("model=recblr",)),
    "recblr bf16-mixed": Peer("ours.py", settings=("model=recblr", "precision=bf16-mixed")),
    "sasrec": Peer("ours.py", settings=("model=sasrec",)),
}
OURS = "recblr"


class Data(NamedTuple):
    """bars: by a model of ours, targets per CPU second over a peer's, with the kept memory.

    None: no bar, the ratio alone is printed.
    """

    name: str
    max_length: int
    dropout: float
    bars: dict[str, float | None]

    @property
    def settings(self) -> list[str]:
        """Of `train.py`; width and layers are the defaults of its models."""
        sizes = {"max_length": self.max_length, "dropout": self.dropout}
        return [f"{k}={v}" for k, v in (sizes | {"batch_size": BATCH_TARGETS}).items()]


DATA = {
    "beauty": Data("Beauty", 50, 0.5, {"recblr": 8, "sasrec": 5}),
    "ml_1m": Data("ML-1M", 200, 0.2, {"recblr": 3, "sasrec": None}),
}
MALLOC = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**28),
    },
}
D_MODEL, N_LAYERS, BATCH_TARGETS = 64, 2, 2048
SPIN = "10000"  # GOMP_SPINCOUNT for all: waiting threads that spin would count as CPU time
TIME_LIMIT = 1200  # seconds of one process


def environment(peer: str, folder: Path) -> Path:
    """The Python of the peer's environment, which is made if it is missing or out of date."""
    requirements = PEERS[peer].requirements
    if not requirements:
        return Path(sys.executable)
    torch = f"torch=={str(version('torch')).split('+')[0]}"
    wanted = "\n".join([torch, *requirements])
    python, done = folder / peer / "bin" / "python", folder / peer / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"{peer}: installing {', '.join(requirements)} into {folder / peer}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    pip = [python, "-m", "pip", "install", "--quiet"]
    with (folder / f"{peer}.log").open("w") as log:
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder / peer],
            [*pip, torch],  # first, so that nothing else chooses another build
            [*pip, torch, *requirements],
        ):
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                raise RuntimeError(f"{shlex.join(map(str, command))} failed: see {log.name}")
    done.write_text(wanted)
    return python


def job_of(
    data: Data, log: list[str], folder: str, store: str, arguments: argparse.Namespace
) -> Job:
    """log: settings of `train.py` that name it. store: the same as arrays, for a peer."""
    return Job(
        store=store,
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


def train(script: str, job: Job, python: Path, malloc: str) -> dict[str, Any]:
    """Run a script of `peers/` in a fresh process -> what `Clock.report` printed."""
    inherited = {k: v for k, v in os.environ.items() if k not in MALLOC["tuned"]}
    env = inherited | MALLOC[malloc]
    env |= {"OMP_NUM_THREADS": str(job.threads), "GOMP_SPINCOUNT": SPIN}
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        command = [python, SCRIPTS / script, json.dumps(asdict(job) | {"folder": folder})]
        try:
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {TIME_LIMIT} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def figures(result: dict[str, Any]) -> dict[str, float]:
    """By the unit that they are recorded with."""
    per_second = result["targets"] / result["wall_s"]
    return {
        "targets/cpu_s": result["targets"] / result["cpu_s"],
        "targets/s": per_second,
        "s/epoch": result["epoch_targets"] / per_second,
        "peak_mb": result["peak_mb"],
    }


def compare(
    data: Data,
    job: Job,
    malloc: str,
    pythons: dict[str, Path],
    rounds: int,
    out: Path,
    setting: Setting,
) -> None:
    """Measure the peers in turn, every second round backwards; record, print, judge."""
    case = f"{data.name} L{job.max_length} D{job.d_model} malloc={malloc}"
    print(f"\n{case}", flush=True)
    results: dict[str, list[dict[str, Any]]] = {peer: [] for peer in pythons}
    failed: set[str] = set()
    for turn in range(rounds):
        for peer in list(pythons)[:: -1 if turn % 2 else 1]:
            if peer in failed:
                continue
            try:
                own = replace(job, settings=[*job.settings, *PEERS[peer].settings])
                result = train(PEERS[peer].script, own, pythons[peer], malloc)
            except RuntimeError as error:
                failed.add(peer)
                print(f"  {peer}: does not run, no row: {error}", flush=True)
                continue
            results[peer].append(result)
            speed = figures(result)["targets/cpu_s"]
            print(
                f"  round {turn + 1}: {peer:14} {result['steps']:4} steps, "
                f"{result['wall_s']:5.1f} s, {speed:8,.0f} targets/CPU s",
                flush=True,
            )
    spreads: dict[str, dict[str, Spread]] = {}
    for peer, of_peer in results.items():
        if peer in failed:
            continue
        by_round = [figures(result) for result in of_peer]
        spreads[peer] = {u: Spread.of([row[u] for row in by_round]) for u in by_round[0]}
        rows = [Row("peers", case, peer, unit, *spread) for unit, spread in spreads[peer].items()]
        record(out, rows, setting._replace(versions=of_peer[0]["versions"]))
    if spreads:
        print_table(spreads, {peer: of_peer[0] for peer, of_peer in results.items() if of_peer})
    if malloc == "tuned":
        judge(data, spreads)


def print_table(spreads: dict[str, dict[str, Spread]], facts: dict[str, dict[str, Any]]) -> None:
    """Medians over the rounds. RecBLR: its targets per CPU second over the line's."""
    columns = ("targets/CPU s", "RecBLR", "targets/s", "s/epoch", "peak MB", "targets/step")
    columns += ("rows/step", "targets/epoch", "classes")
    print(f"  {'':14}" + "".join(f"{column:>15}" for column in columns))
    for peer, spread in spreads.items():
        fact, median = facts[peer], {unit: values.median for unit, values in spread.items()}
        ratio = "-"
        if OURS in spreads:
            ratio = f"{spreads[OURS]['targets/cpu_s'].median / median['targets/cpu_s']:.1f}x"
        cells = (
            f"{median['targets/cpu_s']:,.0f}",
            ratio,
            f"{median['targets/s']:,.0f}",
            f"{median['s/epoch']:,.1f}",
            f"{median['peak_mb']:,.0f}",
            f"{fact['targets'] / fact['steps']:,.0f}",
            f"{fact['step_rows']:,}",
            f"{fact['epoch_targets']:,}",
            f"{fact['classes']:,}",
        )
        print(f"  {peer:14}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


def judge(data: Data, spreads: dict[str, dict[str, Spread]]) -> None:
    speeds = {name: spread["targets/cpu_s"].median for name, spread in spreads.items()}
    for name, peer in product(data.bars, PEERS):
        if name in speeds and peer in speeds and PEERS[peer].requirements:
            ratio, bar, verdict = speeds[name] / speeds[peer], data.bars[name], "no bar"
            if bar is not None:
                verdict = f"{'PASS' if ratio >= bar else 'FAIL'} (at least {bar:g}x)"
            print(f"  {data.name}: {name} {ratio:.1f}x {peer}: {verdict}")


def run(arguments: argparse.Namespace) -> None:
    setting = Setting.now()._replace(threads=arguments.threads)
    print(f"{setting.device}, {setting.threads} threads, load {setting.load:.2f}")
    pythons = {}
    for peer in PEERS:
        if peer.split()[0] not in arguments.only:
            continue
        try:
            pythons[peer] = environment(peer, arguments.envs.absolute())
        except RuntimeError as error:
            print(f"{peer}: no environment, no row: {error}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench_peers-") as folder:
        for name, data in DATA.items():
            path: Path | None = getattr(arguments, name)
            if path is None:
                continue
            store = LogFile(name=name, path=str(path), folder=folder).load()
            arrays = Path(folder, f"{name}.npz")
            np.savez(arrays, items=store.items, offsets=store.offsets)
            log = ["data=custom", f"data.path={path.absolute()}"]
            job = job_of(data, log, folder, str(arrays), arguments)
            for malloc in arguments.malloc:
                compare(data, job, malloc, pythons, arguments.rounds, arguments.out, setting)
    print(f"recorded in {arguments.out}")


def parser_of(doc: str, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """What measures trainings in fresh processes takes: logs, and for how long."""
    summary, details = doc.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    logs = parser.add_argument_group("logs: `user item item ...` a line, by time")
    logs.add_argument("--beauty", type=Path, metavar="PATH", help="Amazon Beauty, 5-core")
    logs.add_argument("--ml-1m", type=Path, metavar="PATH", help="MovieLens 1M, 5-core")
    count, whole = {"type": int, "metavar": "N"}, "(%(default)s)"
    parser.add_argument("--rounds", default=rounds, help=f"processes each {whole}", **count)
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"to measure for in a process {whole}"
    )
    parser.add_argument("--steps", help="stop after as many measured steps, too", **count)
    parser.add_argument("--warmup", default=3, help=f"steps before those measured {whole}", **count)
    parser.add_argument("--threads", default=2, help=f"of each process {whole}", **count)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/speed.csv", help="(results/speed.csv)"
    )
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a file that is missing or a count below 1 ends the program."""
    arguments = parser.parse_args(argv)
    for name in DATA:
        path = getattr(arguments, name)
        if path and not path.is_file():
            parser.error(f"--{name.replace('_', '-')} {path}: no such file")
    counts = ("rounds", "seconds", "warmup", "threads")
    if any(getattr(arguments, name) <= 0 for name in counts) or arguments.steps == 0:
        parser.error("--rounds, --seconds, --steps, --warmup and --threads: at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(str(__doc__), rounds=2, seconds=30)
    names = list(dict.fromkeys(peer.split()[0] for peer in PEERS))
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these (all)")
    parser.add_argument("--malloc", nargs="+", choices=MALLOC, default=list(MALLOC), help="(both)")
    parser.add_argument(
        "--envs", type=Path, default=ROOT / ".peers", help="the peers' environments (.peers)"
    )
    arguments = parsed(parser, argv)
    if not any(getattr(arguments, name) for name in DATA):
        parser.error("give --beauty or --ml-1m or both")
    run(arguments)


if __name__ == "__main__":
    main()
