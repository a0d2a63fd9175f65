"""A log whose best possible ranking is known: a mixture of four causes, drawn from a seed.

The next item of a user is
    recent    with probability `recent`: one of the SUCCESSORS of the last item, by a fixed map;
    earlier   with probability `earlier`: one of the successors, by another map, of the item `lag`
              steps back (1 = the last);
    taste     with probability `taste`: a Zipf draw from the items of the user's lasting taste;
    popular   otherwise: a Zipf draw from all items.
Where the history is too short for `recent` or `earlier`, their probability goes to `popular`.
A popularity floor sees the last cause, a first-order Markov chain also the first; `earlier` and
`taste` need a model with memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.data.preprocess import k_core, pack
from recblr.data.readers import Interactions
from recblr.data.sequences import SequenceStore
from recblr.data.statistics import Statistics, count

logger = logging.getLogger(__name__)

SHARES = np.array([0.6, 0.4])  # of an item's successors, the likeliest first
N_TASTES = 8
SHORTEST = 5  # events of a user: nothing is lost to the 5-core


@dataclass(frozen=True)
class SyntheticLog:
    """What `conf/data/synthetic.yaml` instantiates.

    Lengths are uniform on [5, 2 * mean_length - 5]. Tastes split the items into 8 equal parts.
    zipf: exponent of the popularity and taste draws. With recent = earlier = taste = zipf = 0 the
    log is noise: every item is equally likely at every step.
    """

    name: str = "synthetic"
    n_users: int = 3000
    n_items: int = 200
    mean_length: int = 30
    recent: float = 0.2
    earlier: float = 0.5
    taste: float = 0.2
    lag: int = 2
    zipf: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.recent, self.earlier, self.taste)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"data.recent, earlier, taste = {shares}: expected shares of at least 0 that add "
                "up to at most 1"
            )
        least = {"n_users": 1, "n_items": N_TASTES, "mean_length": SHORTEST, "lag": 1}
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise ValueError(f"data.{key}={getattr(self, key)}: must be {bound} or more")

    def load(self, seed: int = 0) -> SequenceStore:
        """Draw the log. `data.seed` alone decides it; `seed`, the run's, is not used."""
        world = _World(self)
        log = world.draw()
        mask, rounds = k_core(log.users, log.items, SHORTEST)
        store = pack(log.take(mask), "file")
        statistics = Statistics(
            format="synthetic", unreadable=0, raw=count(log), sampled=None, repeats_dropped=0,
            rounds=rounds, notes=[],
        )  # fmt: skip
        for line in statistics.lines(store, {}):
            logger.info("%s: %s", self.name, line)
        return store

    def ceiling(self, store: SequenceStore) -> Ceiling:
        """The true next-item probabilities for the users and items of `store`, from `load`.

        Raises ValueError if the filter removed something: what is left has no known optimum.
        """
        if len(store.items) != _World(self).lengths.sum():
            raise ValueError(
                f"data={self.name}: the 5-core removed events, so the best ranking is not known. "
                "Raise data.n_users or lower data.n_items"
            )
        return Ceiling(self, store)


class _World:
    """Everything that is drawn once: popularity, maps, tastes, users. Items are 0..V-1."""

    def __init__(self, spec: SyntheticLog) -> None:
        self.spec = spec
        self.rng = rng = np.random.default_rng(spec.seed)
        v = spec.n_items
        self.popular = np.empty(v)  # (V,) probabilities
        self.popular[rng.permutation(v)] = _zipf(v, spec.zipf)
        # (S, V): each successor map is a permutation, so every item has as many ways in.
        self.after_last = np.stack([rng.permutation(v) for _ in SHARES])
        self.after_earlier = np.stack([rng.permutation(v) for _ in SHARES])
        self.tastes = np.zeros((N_TASTES, v))  # (K, V) probabilities
        for taste, members in enumerate(np.array_split(rng.permutation(v), N_TASTES)):
            self.tastes[taste, members] = _zipf(len(members), spec.zipf)
        self.taste_of = rng.integers(N_TASTES, size=spec.n_users)  # (U,)
        longest = 2 * spec.mean_length - SHORTEST
        self.lengths = rng.integers(SHORTEST, longest + 1, size=spec.n_users)  # (U,)

    def draw(self) -> Interactions:
        spec, rng, u = self.spec, self.rng, self.spec.n_users
        items = np.empty((u, self.lengths.max()), np.int32)
        for t in range(items.shape[1]):
            cause = rng.random(u)
            successor = rng.choice(len(SHARES), size=u, p=SHARES)
            step = rng.choice(spec.n_items, size=u, p=self.popular)
            by_taste = _draw(rng, self.tastes, self.taste_of)
            step = np.where(cause < spec.taste, by_taste, step)
            bound = spec.taste + spec.recent
            if t >= 1:
                chosen = (cause >= spec.taste) & (cause < bound)
                step = np.where(chosen, self.after_last[successor, items[:, t - 1]], step)
            if t >= spec.lag:
                chosen = (cause >= bound) & (cause < bound + spec.earlier)
                step = np.where(chosen, self.after_earlier[successor, items[:, t - spec.lag]], step)
            items[:, t] = step
        inside = np.arange(items.shape[1]) < self.lengths[:, None]  # (U, T)
        users = np.repeat(np.arange(u, dtype=np.int32), self.lengths)
        user_ids = pa.array([f"u{i}" for i in range(u)])
        item_ids = pa.array([f"i{i}" for i in range(spec.n_items)])
        return Interactions(users, items[inside], None, user_ids, item_ids, "sequences")


def _zipf(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1.0, n + 1) ** -exponent
    return weights / weights.sum()


def _draw(rng: np.random.Generator, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
    """One draw for each user from the distribution `rows[which]`, by its inverse."""
    steps = np.cumsum(rows, axis=1) + np.arange(len(rows))[:, None]  # rising over all rows
    return np.searchsorted(steps.ravel(), which + rng.random(len(which)), "right") % rows.shape[1]


class Ceiling:
    """Scores that nothing can beat: the probabilities that the log was drawn from.

    They use the user's hidden taste, which models do not see: an upper bound. Histories cut to
    fewer than `lag` items lose the `earlier` cause.
    """

    def __init__(self, spec: SyntheticLog, store: SequenceStore) -> None:
        self.spec, world = spec, _World(spec)
        drawn = np.array([int(name[1:]) for name in store.item_ids[1:]])  # (V,) id - 1 -> item
        id_of = np.zeros(spec.n_items, np.int64)
        id_of[drawn] = np.arange(1, len(drawn) + 1)
        pad = np.zeros((len(SHARES), 1), np.int64)
        # Indexed by id, column 0 = padding.
        self.popular = torch.from_numpy(np.append(0.0, world.popular[drawn]))  # (V+1,)
        tastes = np.pad(world.tastes[:, drawn], ((0, 0), (1, 0)))
        self.tastes = torch.from_numpy(tastes)  # (K, V+1)
        self.after_last, self.after_earlier = (
            torch.from_numpy(np.hstack([pad, id_of[after[:, drawn]]]))  # (S, V+1)
            for after in (world.after_last, world.after_earlier)
        )
        users = np.array([int(name[1:]) for name in store.user_ids])
        self.taste_of = torch.from_numpy(world.taste_of[users])  # (U,)

    def score_block(self, batch: SequenceBatch, lo: int, hi: int) -> Tensor:
        """(B, hi - lo) float32: probability that the next item is lo..hi-1."""
        spec, last, lengths = self.spec, batch.last.cpu(), batch.lengths.cpu()
        items, users = batch.items.cpu(), batch.user_ids.cpu()
        out = spec.taste * self.tastes[self.taste_of[users], lo:hi]
        popular = 1 - spec.taste - spec.recent - spec.earlier * (lengths >= spec.lag).double()
        out += popular[:, None] * self.popular[lo:hi]
        causes = (spec.recent, self.after_last, 1), (spec.earlier, self.after_earlier, spec.lag)
        for share, after, back in causes:
            met = lengths >= back  # (B,)
            source = items[torch.where(met, last + 1 - back, last)]
            for part, ids in zip(SHARES, after[:, source]):
                row = torch.nonzero(met & (ids >= lo) & (ids < hi)).squeeze(1)
                out[row, ids[row] - lo] += share * float(part)
        return out.float().to(batch.items.device)
