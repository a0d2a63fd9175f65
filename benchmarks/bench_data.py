"""Raw log -> prepared store: CPU seconds, wall seconds, peak memory.

The log is random: `user item time` per line, tab-separated, no header, 37 bytes a line, string ids
of 14 and 10 characters, the users in random order. Users and items follow power laws such that of
10 M rows 22 % survive the 5-core, after 24 rounds.

Every figure is of a fresh Python process, start and imports included, that reads a file which the
system still holds in memory. A MB is 10**6 bytes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from timing import Cost, Row, Setting, Spread, in_fresh_process, record

BARS = {"cpu_s": 15, "peak_mb": 1500, "mb": 80}  # at 10 M rows
BAR_ROWS = 10_000_000
CHUNK = 500_000  # rows written at a time
# Share of the k-th most frequent of n: about k ** -exponent, down to the n-th.
USER_EXPONENT, ROWS_PER_USER = 0.55, 4
ITEM_EXPONENT, ROWS_PER_ITEM = 0.66, 8
# Code x factor, in base 36, is an id: no two codes share one, and neighbours do not look alike.
USER_FACTOR, ITEM_FACTOR = 0x9E3779B97F4A7C15, 48_430_000_001
ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)


def write_log(path: Path, rows: int, seed: int = 0) -> tuple[int, int]:
    """A log of that many rows -> how many distinct users and items occur in it."""
    random = np.random.default_rng(seed)
    counts = max(rows // ROWS_PER_USER, 1), max(rows // ROWS_PER_ITEM, 1)
    user_ids = _ids(b"A", counts[0], 13, USER_FACTOR)
    item_ids = _ids(b"B00", counts[1], 7, ITEM_FACTOR)
    met = [np.zeros(count, bool) for count in counts]
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            users = (counts[0] * random.random(n) ** (1 / (1 - USER_EXPONENT))).astype(np.int64)
            items = (counts[1] * random.random(n) ** (1 / (1 - ITEM_EXPONENT))).astype(np.int64)
            times = random.integers(1_000_000_000, 1_700_000_000, n, np.uint64)
            met[0][users], met[1][items] = True, True
            line = np.full((n, 37), ord("\t"), np.uint8)
            line[:, :14], line[:, 15:25] = user_ids[users], item_ids[items]
            line[:, 26:36], line[:, 36] = _digits(times, 10, base=10), ord("\n")
            file.write(line.data)
    return int(met[0].sum()), int(met[1].sum())


def _ids(prefix: bytes, count: int, width: int, factor: int) -> np.ndarray:
    """(count, len(prefix) + width) uint8."""
    codes = np.arange(count, dtype=np.uint64) * np.uint64(factor)  # modulo 2**64
    start = np.broadcast_to(np.frombuffer(prefix, np.uint8), (count, len(prefix)))
    return np.concatenate([start, _digits(codes, width, base=36)], axis=1)


def _digits(values: np.ndarray, width: int, base: int) -> np.ndarray:
    """(n,) uint64 -> (n, width) uint8, the last digits as text."""
    digits = np.empty((len(values), width), np.uint8)
    for place in reversed(range(width)):
        values, digit = np.divmod(values, np.uint64(base))
        digits[:, place] = ALPHABET[digit]
    return digits


def only_import() -> None:
    import recblr.data.catalog  # noqa: F401


def prepare(path: str, folder: str, min_interactions: int, verbose: bool) -> dict[str, int]:
    """What `load()` does for a user: read, filter, sort, number, write or find the cache."""
    import logging

    from recblr.data.catalog import LogFile

    if verbose:
        logging.basicConfig(level=logging.INFO, format="    %(message)s")
    log = LogFile(
        name="bench",
        path=path,
        folder=folder,
        columns={"user": 0, "item": 1, "time": 2},
        repeats="keep",
        min_interactions=min_interactions,
    )
    store = log.load()
    return _facts(store.items, store.offsets)


def prepare_with_pandas(path: str, min_interactions: int) -> dict[str, int]:
    """The same, without a cache, as one would write it with data frames."""
    import pandas as pd

    log = pd.read_csv(
        path,
        sep="\t",
        header=None,
        names=["user", "item", "time"],
        dtype={"user": str, "item": str},
    )
    while True:
        of_user = log.groupby("user")["user"].transform("size")
        of_item = log.groupby("item")["item"].transform("size")
        keep = (of_user >= min_interactions) & (of_item >= min_interactions)
        if keep.all():
            break
        log = log[keep]
    log["user"], log["item"] = pd.factorize(log["user"])[0], pd.factorize(log["item"])[0] + 1
    log = log.sort_values(["user", "time"], kind="stable")
    lengths = log.groupby("user").size()
    offsets = np.append(0, np.cumsum(lengths.to_numpy())).astype(np.int64)
    return _facts(log["item"].to_numpy(np.int32), offsets)


def _facts(items: np.ndarray, offsets: np.ndarray) -> dict[str, int]:
    """Counts, bytes and a checksum of a store."""
    from zlib import crc32

    return {
        "rows": len(items),
        "users": len(offsets) - 1,
        "items": int(items.max()),
        "bytes": items.nbytes + offsets.nbytes,
        "checksum": crc32(np.ascontiguousarray(items), crc32(np.ascontiguousarray(offsets))),
    }


def run(rows: int, repeats: int, out: Path, peers: bool, scratch: Path) -> None:
    """All steps in order; each records its figures when it is done."""
    setting = Setting.now("numpy", "pandas", "pyarrow", "torch")
    path, folder = scratch / "bench.tsv", scratch / "data"

    def keep(case: str, backend: str, figures: dict[str, Spread], bars: bool = False) -> None:
        record(out, [Row("data", case, backend, unit, *figures[unit]) for unit in figures], setting)
        for unit, (value, *_) in figures.items():
            bar = BARS.get(unit) if bars and rows == BAR_ROWS else None
            verdict = f"{'PASS' if value <= bar else 'FAIL'} (at most {bar})" if bar else ""
            print(f"  {case:44} {backend:8} {value:>8.4g} {unit:8} {verdict}", flush=True)

    def step(text: str) -> None:
        print(text, flush=True)

    step(f"writing a log of {rows:,} rows")
    users, items = write_log(path, rows)
    log = f"{rows / 1e6:g}M rows {path.stat().st_size / 1e6:.3g} MB tsv"
    step(f"  {log}: {users:,} users, {items:,} items")

    step("importing recblr.data.catalog, part of every figure below")
    costs = [in_fresh_process(only_import) for _ in range(repeats)]
    keep("import recblr.data.catalog", "recblr", _figures(costs))

    step("preparing the log: read, 5-core, sort, number, write the cache")
    costs = []
    for repeat in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        costs.append(in_fresh_process(prepare, str(path), str(folder), 5, repeat == 0))
    ours = costs[0].result
    step("  left: {rows:,} rows, {users:,} users, {items:,} items".format(**ours))
    keep(f"prepare {log}", "recblr", _figures(costs), bars=True)

    step("starting again, with the cache")
    costs = [in_fresh_process(prepare, str(path), str(folder), 5, False) for _ in range(repeats)]
    if costs[0].result != ours:
        raise SystemExit(f"the cache holds another store: {costs[0].result}, expected {ours}")
    keep(f"start again {log}", "recblr", _figures(costs))

    step(f"a store of {rows:,} interactions: nothing filtered")
    shutil.rmtree(folder, ignore_errors=True)
    store = in_fresh_process(prepare, str(path), str(folder), 1, False).result
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    case = f"store of {rows / 1e6:g}M interactions"
    keep(f"{case}, items and offsets", "recblr", {"mb": _one(store["bytes"] / 1e6)}, bars=True)
    keep(f"{case}, cache folder", "recblr", {"mb": _one(on_disk / 1e6)})

    if peers:
        step("preparing the log with plain pandas, without a cache")
        costs = [in_fresh_process(prepare_with_pandas, str(path), 5) for _ in range(repeats)]
        same = "the same" if costs[0].result == ours else f"ANOTHER: {costs[0].result}, not {ours}"
        step(f"  its store is {same}")
        keep(f"prepare {log}", "pandas", _figures(costs))
    step(f"recorded in {out}")


def _figures(costs: list[Cost]) -> dict[str, Spread]:
    units = ("cpu_s", "wall_s", "peak_mb")
    return {unit: Spread.of([getattr(cost, unit) for cost in costs]) for unit in units}


def _one(value: float) -> Spread:
    return Spread(value, None, None)


def main() -> None:
    summary, details = str(__doc__).split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=BAR_ROWS, help="of the log (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every step (%(default)s)")
    parser.add_argument("--peers", action="store_true", help="plain pandas too (slow)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/speed.csv"), help="where figures go (%(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the log and caches are written (the temporary folder)"
    )
    parser.add_argument("--keep", action="store_true", help="leave them there")
    arguments = parser.parse_args()
    if arguments.rows < 1000 or arguments.repeats < 1:
        parser.error("at least --rows 1000 and --repeats 1")
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bench_data-", dir=arguments.folder))
    try:
        run(arguments.rows, arguments.repeats, arguments.out, arguments.peers, scratch)
    finally:
        if arguments.keep:
            print(f"kept {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
