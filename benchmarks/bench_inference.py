"""Streaming, top k and memory of inference: is it exact, and what does it cost?

streams: users' events one by one; RecBLR, GRU4Rec and LRURec against their own whole pass, and the
cost of the next event of each, in turns, beside a SASRec that computes a user anew. event: one
event and the user's top 10. batches: events of many users at once. memory: a fresh process with a
million users. users: the top 10 of every user of a log beside RecTools, and the evaluation of its
test split beside a training epoch; needs --beauty. Weights are those of the start, D = 64: they
change no cost.

Example: python benchmarks/bench_inference.py --beauty amazon-beauty.txt.gz
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_bd_lru import judged, scaled
from bench_peers import DATA, environment, figures, job_of, parsed, parser_of, train
from timing import ROOT, Row, Setting, Spread, in_fresh_process, record

from recblr.data.batch import SequenceBatch
from recblr.data.catalog import LogFile
from recblr.inference import Live, Recommender
from recblr.models.gru4rec import GRU4Rec
from recblr.models.lrurec import LRURec
from recblr.models.recblr import RecBLR
from recblr.models.sasrec import SASRec

CLASSES = {"recblr": RecBLR, "gru4rec": GRU4Rec, "lrurec": LRURec}
ITEMS = 12_101  # Beauty's
LENGTHS = (1, 10, 100, 1_000, 10_000, 100_000)
ANEW = 10_000  # the longest history that SASRec computes anew
TIMED = 300  # next events at each length
TURNS = 5  # of SASRec's lengths
EVENTS = 3_000  # of `event`
STREAMED, AT_ONCE = 20_000, 4_096  # users of `batches`, events of an update
USERS = 1_000_000
BARS = {"error": 1e-5, "longest over 10": 1.2, "ms": 1, "events/s": 100_000, "rectools": 3}
PARTS = ("streams", "event", "batches", "memory", "users")


def recommender(cls: type, **changes: Any) -> Recommender:
    torch.manual_seed(0)
    model = cls(ITEMS, **changes)
    ids = list(map(str, range(ITEMS + 1)))
    config = {"datamodule": {"max_length": 50 if cls is not SASRec else changes["max_length"]}}
    counts = [0] * (ITEMS + 1)
    return Recommender(model, {"config": config, "item_ids": ids, "item_counts": counts})


def history(events: int) -> list[str]:
    """Of one user, drawn evenly."""
    random = np.random.default_rng(0)
    return list(map(str, random.integers(1, ITEMS + 1, events).tolist()))


def whole_pass(rec: Recommender, events: Sequence[str]) -> torch.Tensor:
    """(T, D'): the representation after each of T events, however many."""
    host = torch.tensor([0, len(events)])
    items, none = torch.tensor(list(map(int, events))), torch.tensor([0])
    with torch.inference_mode():
        return rec.model.encode(SequenceBatch(items, host, none, none, host))


def each(call: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[float]:
    """Seconds of each call, of which `calls` has the arguments."""
    seconds = []
    for arguments in calls:
        start = time.perf_counter()
        call(*arguments)
        seconds.append(time.perf_counter() - start)
    return seconds


def next_events(live: Live, users: dict[int, str], events: Sequence[str]) -> dict[int, Spread]:
    """Seconds of event number n + 1 of the user who has had n, for each n in `users`.

    Every user in turn, in alternating order, so that all see the same clock; after each turn but
    the last the states are put back.
    """
    tables = [*zip(live.tables, live.dims), (live.representations, 0)]
    parts = [table.narrow(dim, 0, len(live)) for table, dim in tables]
    before = [part.clone() for part in parts]
    seconds: dict[int, list[float]] = {length: [] for length in users}
    for turn in range(TIMED):
        with torch.inference_mode():
            for part, kept in zip(parts, before):
                part.copy_(kept)
        for length in list(users)[:: 1 if turn % 2 else -1]:
            seconds[length] += each(live.update, [(users[length], events[length])])
    return {length: Spread.of(of_length) for length, of_length in seconds.items()}


def bench_streams(options: argparse.Namespace) -> list[Row]:
    rows, curves = [], {}
    events = history(LENGTHS[-1] + 1)
    for name, cls in CLASSES.items():
        rec = recommender(cls)
        users = {length: f"user {length}" for length in LENGTHS}
        live = rec.start((user, events[:length]) for length, user in users.items())
        fed = live.representations.clone()
        spent = next_events(live, users, events)
        for length, user in users.items():
            exact = whole_pass(rec, events[: length + 1])[-2:]  # before and after the timed event
            slot = live.slots[user]
            got = torch.stack((fed[slot], live.representations[slot]))
            error = float((got - exact).abs().max() / exact.abs().max())
            rows.append(Row("inference", f"error after {length} events", name, "share", error))
            micro = scaled(spent[length], 1e6)
            rows.append(Row("inference", f"next event after {length}", name, "us", *micro))
            verdict = f"{judged(error <= BARS['error'])} at most {BARS['error']:g}"
            print(f"{name} after {length:,} events: {micro[0]:.0f} us for the next,", end=" ")
            print(f"error {error:.1e} {verdict}", flush=True)
        curves[name] = curve = {length: spread.median for length, spread in spent.items()}
        ratio, most = curve[LENGTHS[-1]] / curve[10], BARS["longest over 10"]
        print(f"    {LENGTHS[-1]:,} over 10: {ratio:.2f}x {judged(ratio <= most)} at most {most}x")
    curves["sasrec, computed anew"] = curve = {}
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS if length <= ANEW}
    models = {length: recommender(SASRec, max_length=length) for length in seconds}
    for turn in range(1 + TURNS):
        for length, rec in models.items():
            calls = [([("user", events[:length])],)] * max(1, min(TIMED, ANEW // length) // TURNS)
            spent = each(rec.user_vectors, calls)
            seconds[length] += spent if turn else []  # the first warms up
    for length, of_length in seconds.items():
        micro = scaled(Spread.of(of_length), 1e6)
        curve[length] = micro[0] / 1e6
        rows.append(Row("inference", f"next event after {length}", "sasrec", "us", *micro))
        print(f"sasrec after {length:,} events: {micro[0]:.0f} us, computed anew", flush=True)
    draw(curves, options.figure)
    return rows


def bench_event(options: argparse.Namespace) -> list[Row]:
    live = recommender(RecBLR).start()
    items = history(EVENTS)
    users = [f"user {event % 500}" for event in range(EVENTS)]

    def one(event: int) -> None:
        live.update(users[event], items[event])
        live.recommend([users[event]], 10)

    seconds = each(one, ((event,) for event in range(EVENTS)))[EVENTS // 3 :]
    case, quantiles = f"one event and top 10 of {ITEMS}", {"p50": 0.5, "p99": 0.99}
    values = {name: 1e3 * float(np.quantile(seconds, q)) for name, q in quantiles.items()}
    print(
        f"one event and its user's top 10 of {ITEMS:,}: {values['p50']:.2f} ms, 99 % within "
        f"{values['p99']:.2f} ms {judged(values['p50'] < BARS['ms'])} under {BARS['ms']} ms"
    )
    return [Row("inference", case, "recblr", f"ms {name}", v) for name, v in values.items()]


def bench_batches(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name, cls in CLASSES.items():
        live = recommender(cls).start()
        users = [f"user {user}" for user in range(STREAMED)]
        live.update(users, ["1"] * STREAMED)
        random, items = np.random.default_rng(0), history(AT_ONCE)
        chosen = [
            [users[user] for user in random.choice(STREAMED, min(AT_ONCE, STREAMED), False)]
            for _ in range(12)
        ]
        seconds = each(live.update, [(part, items[: len(part)]) for part in chosen])[2:]
        speed = Spread.of([len(chosen[0]) / s for s in seconds])
        case = f"updates of {len(chosen[0])} events"
        rows.append(Row("inference", case, name, "events/s", *speed))
        bar = f" {judged(speed.median >= BARS['events/s'])} at least {BARS['events/s']:,}"
        print(f"{name}: {speed.median:,.0f} events/s{bar if name == 'recblr' else ''}", flush=True)
    return rows


def states_of(users: int) -> list[float]:
    """Resident bytes a user, and bytes of its state and representation, in this process."""
    live = recommender(RecBLR).start()
    live.update("first", "1")
    before = resident()
    for start in range(0, users, 1 << 14):
        chosen = [f"user {user}" for user in range(start, min(start + (1 << 14), users))]
        live.update(chosen, ["2"] * len(chosen))
    state = sum(t.narrow(d, 0, 1).nbytes for t, d in zip(live.tables, live.dims))
    return [(resident() - before) / users, state, live.representations[:1].nbytes]


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s*(\d+)", status)[0])


def bench_memory(options: argparse.Namespace) -> list[Row]:
    used, state, representation = in_fresh_process(states_of, USERS).result
    print(
        f"{USERS:,} users of one event: {used:,.0f} bytes each: {state:,} state, "
        f"{representation} representation, {used - state - representation:,.0f} ids and seen items"
    )
    case = f"{USERS} users"
    return [
        Row("inference", case, "recblr", "bytes/user", used),
        Row("inference", case, "recblr", "state bytes/user", state),
    ]


def bench_users(options: argparse.Namespace) -> Iterator[tuple[Row, str]]:
    """Rows, and the versions that they hold for."""
    data = DATA["beauty"]
    with tempfile.TemporaryDirectory(prefix="bench_inference-") as folder:
        store = LogFile(name="beauty", path=str(options.beauty), folder=folder).load()
        arrays = Path(folder, "beauty.npz")
        np.savez(arrays, items=store.items, offsets=store.offsets)
        log = ["data=custom", f"data.path={options.beauty.absolute()}"]
        job = job_of(data, log, folder, str(arrays), options)
        job = replace(job, steps=job.steps or 3)
        ours = Path(sys.executable)
        pythons = {
            "recblr": ("recommend_ours.py", ours),
            "rectools": ("recommend_rectools.py", environment("rectools", options.envs.absolute())),
        }
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
        for _ in range(options.rounds):
            for name, (script, python) in pythons.items():
                results[name].append(train(script, job, python, "default"))
        epoch = train("ours.py", replace(job, steps=None), ours, "default")
    spent = {}
    for name, of_peer in results.items():
        case, versions = f"top 10 of {store.n_users} users", of_peer[0]["versions"]
        for unit in ("cpu_s", "wall_s", "peak_mb"):
            spread = Spread.of([result[unit] for result in of_peer])
            spent[name, unit] = spread.median
            yield Row("recommend", case, name, unit, *spread), versions
        print(f"{name}: {case}: {spent[name, 'cpu_s']:.2f} CPU s, {spent[name, 'wall_s']:.2f} s")
    ratio, least = spent["rectools", "cpu_s"] / spent["recblr", "cpu_s"], BARS["rectools"]
    print(f"    {ratio:.1f}x fewer CPU s {judged(ratio >= least)} at least {least}x")
    versions = results["recblr"][0]["versions"]
    evaluation = Spread.of([result["evaluation_s"] for result in results["recblr"]])
    yield Row("recommend", "evaluation of the test split", "recblr", "s", *evaluation), versions
    seconds = figures(epoch)["s/epoch"]
    yield Row("recommend", "epoch beside the evaluation", "recblr", "s", seconds), versions
    print(
        f"evaluation {evaluation.median:.1f} s, training epoch {seconds:.1f} s "
        f"{judged(evaluation.median < seconds)} less"
    )


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, curve in curves.items():
        axes.plot(list(curve), [1e3 * s for s in curve.values()], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="events before", ylabel="ms for the next event")
    axes.set_title(f"One more event of a user, {torch.get_num_threads()} thread(s)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    print(f"drawn: {path}")


def run(options: argparse.Namespace) -> None:
    setting = Setting.now("torch", "numba")._replace(threads=options.threads)
    torch.set_num_threads(options.threads)
    print(f"{setting.device}, {setting.threads} threads, load {setting.load:.2f}")
    benches = {"streams": bench_streams, "event": bench_event, "batches": bench_batches}
    benches["memory"] = bench_memory
    for part in options.only:
        if part != "users":
            record(options.out, benches[part](options), setting)
        elif options.beauty:
            for row, versions in bench_users(options):
                record(options.out, [row], setting._replace(versions=versions))
    print(f"recorded in {options.out}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(str(__doc__), rounds=3, seconds=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these (all)")
    parser.add_argument(
        "--figure", type=Path, default=ROOT / "results/figures/inference_length.png"
    )
    parser.add_argument("--envs", type=Path, default=ROOT / ".peers", help="(.peers)")
    run(parsed(parser, argv))


if __name__ == "__main__":
    main()
