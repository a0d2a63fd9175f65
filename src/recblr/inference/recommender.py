"""Top k for any history: raw ids in and out, one trained model, exact over the whole catalogue.

rec = Recommender.load("runs/ml-100k/recblr/s2024-1a2b3c4d")
rec.recommend([("ann", ["242", "302"]), ("bob", [])], k=5).frame()

A model is known by its protocol alone (`recblr.models.base`): what has `represent` can recommend,
what has `step` can also be kept up to date event by event (`start`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.data.sequences import SequenceStore
from recblr.models.base import PRODUCT_TILE, block_scorer, item_bias
from recblr.models.saved import (
    CHECKPOINT_KEY,
    build,
    build_model,
    choose_scan,
    load_weights,
    read_checkpoint,
)
from recblr.ops.topk import top_k
from recblr.run_folder import model_name

if TYPE_CHECKING:
    import pandas as pd

    from recblr.inference.live import Live

History = tuple[Any, Collection[Any]]  # raw user id, raw item ids, the oldest first
MODEL, POPULARITY = "model", "popularity"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Top:
    """The k best items of B users, best first.

    user_ids (B,), item_ids (B, k): object arrays of str. scores (B, k) float32: the model's, or
    training events for what is popular. sources (B,): "model", or "popularity" for a user of whom
    no item is known. skipped: items of the histories that the model does not know. filled: users
    who have met all but fewer than k items, and so get the best of those that they have met, too.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    scores: np.ndarray
    sources: np.ndarray
    skipped: int = 0
    filled: int = 0

    def columns(self) -> dict[str, np.ndarray]:
        """Rows of B k: user_id, rank from 1, item_id, score, source."""
        users, k = self.item_ids.shape
        return {
            "user_id": self.user_ids.repeat(k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), users),
            "item_id": self.item_ids.ravel(),
            "score": self.scores.ravel(),
            "source": self.sources.repeat(k),
        }

    def frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.columns())


class Candidates(NamedTuple):
    """What may be recommended.

    allowed (V+1,) bool; None = every item. popular: their ids, the most frequent first.
    """

    allowed: Tensor | None
    popular: np.ndarray


class Recommender:
    """One trained model over the raw ids of its log.

    about: what a checkpoint says of its run: `config`, `split_hash`, raw `item_ids` in id order
    (the first is the padding's), `item_counts` of the training part, and raw `user_ids` for a model
    with a vector per user.
    """

    def __init__(self, model: Any, about: dict[str, Any]):
        self.model, self.about = model.eval(), about
        self.item_ids = np.array(about["item_ids"], object)
        self.known = {raw: item for item, raw in enumerate(about["item_ids"]) if item}
        self.users = {raw: user for user, raw in enumerate(about.get("user_ids", ()))}
        self.max_length: int = about["config"]["datamodule"]["max_length"]
        counts = np.array(about["item_counts"], np.float32)
        self.counts = counts
        self.every = Candidates(None, 1 + np.argsort(-counts[1:], kind="stable"))

    @classmethod
    def load(
        cls, path: Path | str, scan: str | None = None, device: str | None = None
    ) -> Recommender:
        """From a run folder or a checkpoint.

        scan: how the recurrence runs; None = as the model was trained, "auto" = what is fastest
        here. device: `cpu` or `cuda`; None = a GPU if there is one and the run did not say cpu.
        The file names the classes that are built: load only what you trust.
        ValueError or OSError for what is no checkpoint, one without the counts of its items, and a
        scan that does not run here.
        """
        path = Path(path)
        path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
        checkpoint = read_checkpoint(path)
        about = checkpoint[CHECKPOINT_KEY]
        if "item_counts" not in about:
            raise ValueError(f"ckpt_path={path}: has no item_counts; train the model anew")
        config = about["config"]
        here = (None, "cpu", "cuda") if torch.cuda.is_available() else (None, "cpu")
        if device not in here:
            raise ValueError(f"device={device}: must be cpu, or cuda where torch sees a GPU")
        if device is None:
            gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu"
            device = "cuda" if gpu else "cpu"
        node = config["model"]
        if "scan" in node:
            node = node | ({} if scan is None else {"scan": scan})
        elif scan not in (None, "auto"):
            raise ValueError(f"scan={scan}: {model_name(config)} has no scan")
        if runs := choose_scan(node, device):
            log.info("scan=%s runs as %s", node["scan"], runs)
        model = build_model(node, len(about["item_ids"]) - 1, len(about.get("user_ids", ())))
        load_weights(model, checkpoint)
        return cls(model.to(device), about)

    @property
    def name(self) -> str:
        return model_name(self.about["config"])

    @property
    def n_items(self) -> int:
        return len(self.item_ids) - 1

    @cached_property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def bias(self) -> Tensor | None:
        bias = item_bias(self.model)
        return None if bias is None else bias.detach()

    @cached_property
    def matrix(self) -> Tensor:
        """(V+1, D') and zero rows: what `models.base.scorer` takes without a copy."""
        return F.pad(self.model.item_matrix().detach(), (0, 0, 0, PRODUCT_TILE))

    def recommend(self, histories: Iterable[History], k: int = 10, **options: Any) -> Top:
        """The k best items after each history; options as for `batches`."""
        return joined(list(self.batches(histories, k, **options)), k)

    def batches(
        self,
        histories: Iterable[History],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] = (),
        batch_size: int = 512,
    ) -> Iterator[Top]:
        """The same, `batch_size` histories at a time, in memory that does not grow with them.

        histories: (raw user id, raw item ids, the oldest first); the model sees the last
        `max_length` known ones. exclude_seen: leave out what is in the user's whole history.
        allow: recommend nothing else; deny: nothing of these. ValueError if fewer than k remain.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 1 or more")
        candidates = self.candidates(k, allow, deny)
        histories = iter(histories)
        while chunk := list(islice(histories, batch_size)):
            check_histories(chunk)
            users = np.array([str(user) for user, _ in chunk], object)
            known = [self.encode(items) for _, items in chunk]
            skipped = sum(len(items) for _, items in chunk) - sum(map(len, known))
            warm = np.array([bool(items) for items in known])
            seen = [items for items in known if items]
            with torch.inference_mode():
                score = block_scorer(self.model, self.batch(users[warm], seen)) if seen else None
                top = self.top(
                    users, warm, score, seen if exclude_seen else None, k, candidates, skipped
                )
            yield top  # outside: the caller's code between two batches may train

    def user_vectors(
        self, histories: Iterable[History], batch_size: int = 512
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw user ids (B,), vectors (B, D'); zeros for a user of whom no item is known.

        The score of an item is the product of the user's vector and the item's, and, where the
        user has met the item, the model's repeat bias, if it has one.
        """
        width = self.item_vectors()[1].shape[1]
        ids, vectors = [np.empty(0, object)], [np.empty((0, width), np.float32)]
        histories = iter(histories)
        while chunk := list(islice(histories, batch_size)):
            check_histories(chunk)
            users = np.array([str(user) for user, _ in chunk], object)
            known = [self.encode(items) for _, items in chunk]
            warm = np.array([bool(items) for items in known])
            rows = np.zeros((len(chunk), width), np.float32)
            if warm.any():
                with torch.inference_mode():
                    batch = self.batch(users[warm], [items for items in known if items])
                    x = self.model.represent(batch)
                x = x if self.bias is None else F.pad(x, (0, 1), value=1.0)
                rows[warm] = x.float().cpu().numpy()
            ids.append(users)
            vectors.append(rows)
        return np.concatenate(ids), np.concatenate(vectors)

    def item_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw item ids (V,), vectors (V, D') float32; an item's bias is one more dimension."""
        vectors = self.matrix[1 : self.n_items + 1]
        if self.bias is not None:
            vectors = torch.cat((vectors, self.bias[1:, None]), 1)
        return self.item_ids[1:], vectors.float().cpu().numpy()

    def similar_items(self, item: Any, k: int = 10) -> list[tuple[str, float]]:
        """The k items whose vectors have the smallest angle to an item's, with its cosine."""
        if str(item) not in self.known:
            raise ValueError(f"item {item}: the model does not know it")
        if not 1 <= k < self.n_items:
            raise ValueError(f"k={k}: must be in 1..{self.n_items - 1}, the number of other items")
        matrix = F.normalize(self.matrix[: self.n_items + 1], dim=1)
        own = self.known[str(item)]
        cosine = matrix @ matrix[own]
        others = torch.ones_like(cosine, dtype=torch.bool)
        others[own] = False
        score, items = top_k(
            lambda lo, hi: cosine[None, lo:hi].clone(), k, self.n_items, allowed=others
        )
        return list(zip(self.item_ids[items[0].cpu().numpy()], score[0].tolist()))

    def start(self, histories: Iterable[History] = (), states: Path | str | None = None) -> Live:
        """States of users that are updated event by event.

        A state reaches back over the whole history, however long, while `recommend` of this class
        sees its last `max_length` items: for longer ones the two differ.
        histories: what is fed first, also to rebuild all states for a new model. states: a file
        of `Live.save`. ValueError for a model without `step`.
        """
        from recblr.inference.live import Live

        if not hasattr(self.model, "step"):
            raise ValueError(
                f"{self.name} has no step(): recommend() computes its users anew from histories"
            )
        live = Live(self) if states is None else Live.load(self, states)
        histories, skipped = iter(histories), 0
        while chunk := list(islice(histories, 1024)):
            check_histories(chunk)
            users = [user for user, items in chunk for _ in items]
            skipped += live.update(users, list(chain.from_iterable(items for _, items in chunk)))
        if skipped:
            log.warning("%s items of the histories are unknown and were skipped", f"{skipped:,}")
        return live

    def log(self, path: Path | str | None = None) -> SequenceStore:
        """The log that the model was trained on, read again. path: where it is now."""
        return read_again(self.about, path)

    def encode(self, items: Iterable[Any]) -> list[int]:
        """Ids of the raw ids that are known."""
        known, items = self.known, items.tolist() if isinstance(items, Tensor) else items
        return [known[raw] for raw in map(str, items) if raw in known]

    def user_index(self, users: Iterable[str]) -> Tensor:
        """(B,) int64: index of the users in the training log, -1 for others."""
        return torch.tensor([self.users.get(user, -1) for user in users], device=self.device)

    def batch(self, users: Iterable[str], histories: Sequence[list[int]]) -> SequenceBatch:
        """The last `max_length` items of each history (none is empty), packed."""
        last = [items[-self.max_length :] for items in histories]
        host = torch.tensor([0, *map(len, last)]).cumsum(0)
        return SequenceBatch(
            items=torch.tensor(list(chain.from_iterable(last)), device=self.device),
            cu_seqlens=host.to(self.device),
            targets=torch.zeros(len(last), dtype=torch.int64, device=self.device),
            user_ids=self.user_index(users),
            cu_seqlens_host=host,
        )

    def candidates(
        self, k: int, allow: Iterable[Any] | None = None, deny: Iterable[Any] = ()
    ) -> Candidates:
        """ValueError if there are fewer than k. Unknown ids of the lists are skipped, and said."""
        for name, ids in (("allow", allow), ("deny", deny)):
            if isinstance(ids, str):
                raise ValueError(f"{name}={ids!r}: give a list of ids")
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool):
            raise ValueError(f"k={k!r}: must be a whole number")
        candidates = self.every
        deny = list(deny)
        if allow is not None or deny:
            allow = None if allow is None else list(allow)
            listed = [*(allow or ()), *deny]
            if unknown := len(listed) - len(self.encode(listed)):
                log.warning("%d of %d ids of allow and deny are unknown", unknown, len(listed))
            allowed = torch.full((self.n_items + 1,), allow is None)
            allowed[self.encode(allow or ())] = True
            allowed[self.encode(deny)] = False
            popular = self.every.popular
            popular = popular[allowed.numpy()[popular]]
            candidates = Candidates(allowed.to(self.device), popular)
        if not 1 <= k <= len(candidates.popular):
            left = len(candidates.popular)
            limits = f"must be in 1..{left}" if left else "allow and deny leave nothing"
            raise ValueError(f"k={k}: {limits}, the candidates")
        return candidates

    def top(
        self,
        users: np.ndarray,
        warm: np.ndarray,
        score: Any,
        seen: Sequence[list[int] | np.ndarray] | None,
        k: int,
        candidates: Candidates,
        skipped: int = 0,
    ) -> Top:
        """The best of all users; `score` and `seen` are of those that are `warm` (B,)."""
        items, scores = np.empty((len(users), k), np.int64), np.empty((len(users), k), np.float32)
        if not warm.all():
            popular = candidates.popular[:k]
            items[~warm], scores[~warm] = popular, self.counts[popular]
        filled = 0
        if score is not None:
            best, chosen = top_k(
                score,
                k,
                self.n_items,
                allowed=candidates.allowed,
                seen=None if seen is None else self.pairs(seen),
            )
            if not chosen[:, -1].cpu().numpy().all():
                short = (chosen[:, -1] == 0).nonzero()[:, 0]
                filled = len(short)
                self._fill(score, short, best, chosen, candidates)
            best, chosen = best.float().cpu().numpy(), chosen.cpu().numpy()
            if warm.all():
                scores, items = best, chosen
            else:
                scores[warm], items[warm] = best, chosen
        sources = np.where(warm, MODEL, POPULARITY).astype(object)
        return Top(users, self.item_ids[items], scores, sources, skipped, filled)

    def pairs(self, seen: Sequence[list[int] | np.ndarray]) -> tuple[Tensor, Tensor]:
        """Index of each user and item, (N,) int64 each, of the items of several users."""
        users = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        items = np.concatenate([np.asarray(items, np.int64) for items in seen])
        return torch.from_numpy(users).to(self.device), torch.from_numpy(items).to(self.device)

    def _fill(
        self, score: Any, short: Tensor, best: Tensor, chosen: Tensor, candidates: Candidates
    ) -> None:
        """Put the best seen items behind the others, for users who have met nearly all."""
        k = best.shape[1]
        scores, items = top_k(
            lambda lo, hi: score(lo, hi)[short], k, self.n_items, allowed=candidates.allowed
        )
        for row, all_scores, all_items in zip(short.tolist(), scores, items):
            free = int((chosen[row] > 0).sum())
            again = ~torch.isin(all_items, chosen[row, :free])
            best[row, free:] = all_scores[again][: k - free]
            chosen[row, free:] = all_items[again][: k - free]


def check_histories(histories: Sequence[History]) -> None:
    """ValueError for what is no pair of a user and several items, as a bare list of items is."""
    for history in histories:
        pair = isinstance(history, (tuple, list)) and len(history) == 2
        if not pair or isinstance(history[1], str) or not isinstance(history[1], Collection):
            raise ValueError(f"history {history!r}: must be (user, [item, item, ..])")


def joined(tops: list[Top], k: int) -> Top:
    if not tops:
        empty = np.empty(0, object)
        return Top(empty, np.empty((0, k), object), np.empty((0, k), np.float32), empty)
    columns = zip(*((t.user_ids, t.item_ids, t.scores, t.sources) for t in tops))
    users, items, scores, sources = map(np.concatenate, columns)
    counts = sum(top.skipped for top in tops), sum(top.filled for top in tops)
    return Top(users, items, scores, sources, *counts)


def read_again(about: dict[str, Any], path: Path | str | None = None) -> SequenceStore:
    """The log of a checkpoint; ValueError if it is not the one that it was trained on."""
    config = about["config"]
    node = config["data"]
    if path is not None and "path" not in node:
        raise ValueError(f"data.path={path}: data={node['name']} has no file")
    if path is not None:
        node = node | {"path": str(Path(path).expanduser().absolute())}
    store = build(node).load(config["seed"])
    if store.split_hash != about["split_hash"]:
        raise ValueError(
            f"data={node['name']}: trained on other data (split {about['split_hash'][:12]}, now "
            f"{store.split_hash[:12]}); give the log that it was trained on as data.path"
        )
    return store


def histories_of(store: SequenceStore) -> Iterator[History]:
    """Every user of a log with all of its events."""
    for user, start, stop in zip(store.user_ids, store.offsets[:-1], store.offsets[1:]):
        yield user, store.item_ids[store.items[start:stop]]
