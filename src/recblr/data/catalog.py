"""The data sets by name: each file of `conf/data` is one `LogFile`, a log and its recipe."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recblr.data import cache, preprocess
from recblr.data.download import fetch, file_name
from recblr.data.preprocess import Counts, Order, Repeats, SplitName
from recblr.data.readers import AnyFormat, Format, Interactions, read_log
from recblr.data.sequences import SequenceStore
from recblr.data.sources import fingerprint
from recblr.data.statistics import Statistics, count, counts_of, cut_note, time_notes
from recblr.data.tables import DEFAULT_COLUMNS

CONF = Path(__file__).parents[3] / "conf" / "data"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What is known of a data set; None = unknown.

    source: how to get files that are not downloaded. size: bytes of the download. before: users,
    items and interactions of the raw file; after: what this recipe leaves; paper: the paper's
    Table 2. note: why they differ. known_order: md5 of a sequence file -> name of the order that it
    was written in.
    """

    source: str | None = None
    licence: str | None = None
    citation: str | None = None
    size: int | None = None
    before: dict[str, int] | None = None
    after: dict[str, int] | None = None
    paper: dict[str, int] | None = None
    note: str | None = None
    known_order: dict[str, str] | None = None


@dataclass(frozen=True)
class LogFile:
    """One log and its recipe: what `conf/data/<name>.yaml` instantiates.

    path: the log; None = downloaded from `urls`, tried in order, to `folder`, and checked against
        `sha256` (None: the first download's is kept and compared later).
    format, raw_format, columns, separator, quotes, member, max_bad_rows: see `readers.read_log`.
    order: `auto` = exact if the log has times, else the file's. Files without times take only
        `auto` and `shuffled`.
    repeats: rows of a (user, item) pair to keep: all, the first or the last.
    min_interactions: k of the iterative k-core over users and items; 0 or 1 = no filter.
    split: `leave_one_out`, or `temporal` at the quantiles `cut` of all times.
    users: keep that many, drawn before anything else; None = all.
    folder: where downloads and prepared logs are kept.
    """

    name: str
    path: str | None = None
    urls: list[str] = field(default_factory=list)
    sha256: str | None = None
    member: str | None = None
    format: AnyFormat = "auto"
    raw_format: Format = "table"
    columns: dict[str, str | int] = field(default_factory=lambda: dict(DEFAULT_COLUMNS))
    separator: str | None = None
    quotes: bool = True
    max_bad_rows: int = 0
    order: Order = "auto"
    repeats: Repeats = "keep"
    min_interactions: int = 5
    split: SplitName = "leave_one_out"
    cut: list[float] = field(default_factory=lambda: [0.8, 0.9])
    users: int | None = None
    folder: str = "data"
    card: Card = field(default_factory=Card)

    def __post_init__(self) -> None:
        for key, least in (("min_interactions", 0), ("max_bad_rows", 0), ("users", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"data.{key}={value}: must be {least} or more")
        numbers = [q for q in self.cut if isinstance(q, (int, float))]
        if len(self.cut) != 2 or len(numbers) != 2 or not 0 < numbers[0] < numbers[1] < 1:
            raise ValueError(f"data.cut={self.cut}: expected two rising quantiles in (0, 1)")

    def load(self, seed: int = 0) -> SequenceStore:
        """Find, read, filter, order and split, or take it from the cache; logs the counts.

        seed: for order=shuffled. Raises ValueError or OSError for a path that is not set, a failed
        download, a bad file or recipe, and an empty result.
        """
        path = self.find()
        place = Path(self.folder, "cache", f"{self.name}-{self._key(path, seed)[:16]}")

        def build() -> tuple[SequenceStore, dict[str, Any]]:
            store, statistics = self.prepare(self.read(path), path, seed)
            return store, asdict(statistics)

        store, about = cache.cached(place, build)
        self.report(Statistics.of(about), store)
        return store

    def find(self) -> Path:
        """The log's path, downloaded if need be."""
        if self.path == "":
            raise ValueError("data.path is empty: name a file or a folder")
        if self.path is not None:
            return Path(self.path).expanduser()
        if not self.urls:
            where = f"get it from {self.card.source}, then " if self.card.source else ""
            raise ValueError(
                f"data.path is not set: {self.name} is not downloaded for you; "
                f"{where}data.path=FILE"
            )
        if not Path(self.folder, file_name(self.urls)).exists():
            size = f"{self.card.size / 1e6:,.1f} MB" if self.card.size else "size unknown"
            logger.info("%s: to download: %s", self.name, size)
            logger.info("%s: licence: %s", self.name, self.card.licence or "unknown")
            if self.card.citation:
                logger.info("%s: cite %s", self.name, self.card.citation)
        return fetch(self.urls, Path(self.folder), sha256=self.sha256)

    def read(self, path: Path) -> Interactions:
        return read_log(
            path,
            self.format,
            self.columns,
            self.raw_format,
            member=self.member,
            separator=self.separator,
            quotes=self.quotes,
            max_bad_rows=self.max_bad_rows,
        )

    def prepare(
        self, raw: Interactions, path: Path, seed: int = 0
    ) -> tuple[SequenceStore, Statistics]:
        """Repeats, k-core, order, split."""
        order = self._resolve_order(raw, path)
        chosen = raw if self.users is None else preprocess.sample_users(raw, self.users)
        distinct = preprocess.apply_repeats(chosen, self.repeats)
        mask, rounds = preprocess.k_core(distinct.users, distinct.items, self.min_interactions)
        kept = distinct.take(mask)
        cut = (self.cut[0], self.cut[1])
        store = preprocess.pack(kept, order, seed, self.split, cut)
        statistics = Statistics(
            format=raw.format,
            unreadable=raw.unreadable,
            raw=count(raw),
            sampled=None if self.users is None else count(chosen),
            repeats_dropped=len(chosen) - len(distinct),
            rounds=list(rounds),
            notes=time_notes(kept.times),
        )
        if self.split == "temporal" and kept.times is not None:
            statistics.notes.append(cut_note(store, kept.times, cut))
        return store, statistics

    def report(self, statistics: Statistics, store: SequenceStore) -> None:
        """Log what came in and what is left, beside what is expected and the paper's Table 2."""
        # A log given by its path may well be another excerpt than the download.
        before = self.card.before if self.path is None else None
        beside = {"expected raw": before, "expected": self.card.after}
        for line in statistics.lines(store, beside | {"paper, Table 2": self.card.paper}):
            logger.info("%s: %s", self.name, line)
        for what, expected, found in (
            ("raw", before, statistics.raw),
            ("prepared", self.card.after, counts_of(store)),
        ):
            self._compare(what, expected or {}, found)
        if self.card.note:
            logger.info("%s: note: %s", self.name, self.card.note)

    def _compare(self, what: str, expected: dict[str, int], found: Counts) -> None:
        wrong = [
            f"{getattr(found, key):,} {key}, expected {number:,}"
            for key, number in expected.items()
            if number != getattr(found, key)
        ]
        if wrong:
            logger.warning("%s: %s: %s", self.name, what, "; ".join(wrong))
        elif expected:
            logger.info("%s: %s: the counts are the expected ones", self.name, what)

    def _key(self, path: Path, seed: int) -> str:
        """sha256 of everything that decides the prepared log: content, recipe and our own code."""
        recipe = {k: v for k, v in asdict(self).items() if k not in _NOT_RECIPE}
        recipe |= {"source": fingerprint(path), "known_order": self.card.known_order}
        if self.order == "shuffled":
            recipe["seed"] = seed
        code = hashlib.sha256()
        for module in sorted(Path(__file__).parent.glob("*.py")):
            code.update(module.read_bytes())
        recipe["code"] = code.hexdigest()
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def _resolve_order(self, raw: Interactions, path: Path) -> str:
        if raw.times is not None:
            return "exact" if self.order == "auto" else self.order
        own = "file"
        if self.card.known_order:
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            own = self.card.known_order.get(md5, own)
            if own != "file":
                logger.info("%s: a known file, by time with ties by %s", self.name, own)
        if self.order in ("auto", own):
            return own
        if self.order == "shuffled":
            return "shuffled"
        raise ValueError(
            f"data.order={self.order}: data.path='{path}' has no times, its order is '{own}'. "
            "Use data.order=auto or shuffled"
        )


_NOT_RECIPE = ("name", "path", "urls", "sha256", "folder", "card")


def names() -> list[str]:
    """The data sets that `data=` takes and that are read from files."""
    if not CONF.is_dir():
        raise FileNotFoundError(f"{CONF}: no such folder; run in a checkout of the repository")
    return sorted(
        file.stem for file in CONF.glob("*.yaml") if not file.stem.startswith("synthetic")
    )


def entry(name: str, **changes: Any) -> LogFile:
    """The catalog's `LogFile` of a name, with `changes`."""
    if name not in names():
        raise ValueError(f"data={name}: no such data set; valid: {', '.join(names())}")
    facts = {key: value for key, value in _facts(name).items() if key not in ("_target_", "folder")}
    card = {key: value for key, value in facts.pop("card").items() if key != "_target_"}
    return LogFile(**facts | changes, card=Card(**card))


def _facts(name: str) -> dict[str, Any]:
    """A file of `conf/data` on top of those that it names in its defaults."""
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        facts |= _facts(base)
    card = facts.get("card", {}) | own.get("card", {})
    return facts | own | {"card": card}
