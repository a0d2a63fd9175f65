"""States of many users: an event costs the same, whatever came before it.

live = rec.start()
live.update("ann", "242")
live.update(["ann", "bob"], ["302", "17"])
live.recommend(["ann", "bob"], k=5).frame()

One table per part of the model's state, a slot per user, grown by doubling. Events are fed in
rounds in which each user has at most one: gather the slots, `step`, scatter; or, for few users, the
model's `step_in_place`, if it has one.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from recblr.models.base import Shifted, repeat_bias, scorer

if TYPE_CHECKING:
    from recblr.inference.recommender import Recommender, Top

log = logging.getLogger(__name__)

FIRST = 1024  # slots of a new table
AT_ONCE = 4096  # users of a step; 1024 take 1.1 times as long (measured)
FEW = 8  # users of a step for whom calls cost more than arithmetic: 0.46 against 0.67 ms (measured)
SLACK = 64  # seen items of a user between two looks for repeats


class Slots(dict[str, int]):
    """Raw user id -> slot; a new user takes the next."""

    def __missing__(self, user: str) -> int:
        self[user] = slot = len(self)
        return slot


class Live:
    """What `Recommender.start` gives. Not for several threads at once.

    slots: raw user id -> place in the tables. tables: the parts of the model's state, users along
    dimension `dims`. representations (slots, D'): after each user's last event. seen: ids that each
    user has met, repeats dropped now and then.
    """

    def __init__(self, recommender: Recommender):
        self.recommender, self.model = recommender, recommender.model
        self.by_user = starts_by_user(self.model)
        one, two = (self._init_state([""] * users) for users in (1, 2))
        self.dims = [user_dim(a, b) for a, b in zip(one, two)]
        self.tables = [a.narrow(d, 0, 0) for a, d in zip(one, self.dims)]
        self.representations = recommender.matrix[:0]
        self.step = traced(FlatStep(self.model, self.model.init_state(1)), self._init_state)
        self.step_in_place = getattr(self.model, "step_in_place", lambda: None)()
        self.slots, self.seen = Slots(), []
        self.compacted: list[int] = []  # seen items of each user after the last drop of repeats
        if self.step_in_place is not None:  # compile it here, not at the first event
            nobody = np.empty(0, np.int64)
            self.step_in_place(nobody, nobody, self.tables, self.representations)

    def __len__(self) -> int:
        return len(self.slots)

    @torch.inference_mode()
    def update(self, users: Any, items: Any) -> int:
        """Feed events in the order given; returns how many had an unknown item and were skipped.

        users, items: raw ids, one of each or as many of each, in any interleaving. ValueError for
        one and several, or not as many.
        """
        if _several(users) != _several(items):
            raise ValueError("one id and several: give one user and one item, or a list of each")
        if not _several(users):
            users, items = [users], [items]
        if isinstance(items, Tensor):
            items = items.tolist()
        known = self.recommender.known
        ids = [known.get(raw, 0) for raw in map(str, items)]
        if len(users) != len(ids):
            raise ValueError(f"{len(users)} users and {len(ids)} items: as many of each")
        names = list(map(str, users))
        skipped = ids.count(0)
        if skipped:
            names = [name for name, item in zip(names, ids) if item]
            ids = [item for item in ids if item]
        if not ids:
            return skipped
        before = len(self.slots)
        slots = [self.slots[name] for name in names]
        if len(self.slots) > before:
            self._admit(before)
        for slot, item in zip(slots, ids):
            seen = self.seen[slot]
            seen.append(item)
            if not len(seen) % SLACK:
                self._drop_repeats(slot)
        where, what = np.array(slots), np.array(ids)
        if len(ids) == 1:
            self._step(where, what)
            return skipped
        for chosen in rounds(where):
            for start in range(0, len(chosen), AT_ONCE):
                part = chosen[start : start + AT_ONCE]
                self._step(where[part], what[part])
        return skipped

    def recommend(
        self,
        users: Sequence[Any],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] = (),
    ) -> Top:
        """The k best items for users as they are now; one without an event gets what is popular."""
        rec, users = self.recommender, users if _several(users) else [users]
        names = list(map(str, users))
        slots = [self.slots[name] for name in names if name in self.slots]
        warm = np.array([name in self.slots for name in names], bool)
        seen = [np.array(self.seen[slot], np.int32) for slot in slots] if exclude_seen else None
        candidates = rec.candidates(k, allow, deny)
        with torch.inference_mode():
            score = None
            if slots:
                where = torch.from_numpy(np.array(slots)).to(rec.device)
                x = self.representations.index_select(0, where)
                score = scorer(x, rec.matrix, rec.bias, self._shifted(slots))
            return rec.top(np.array(names, object), warm, score, seen, k, candidates)

    def _shifted(self, slots: list[int]) -> Shifted | None:
        """Of a repeat bias, over the whole history: index into `slots`, item, by how much."""
        if (by := repeat_bias(self.model)) is None:
            return None
        return *self.recommender.pairs([np.unique(self.seen[slot]) for slot in slots]), by

    def save(self, path: Path | str) -> None:
        """All states as one Arrow file, which holds numbers and text alone."""
        path, users = Path(path), len(self)
        seen = [np.array(items, np.int32) for items in self.seen]
        offsets = np.cumsum([0, *map(len, seen)])
        columns = {
            "user_id": pa.array(list(self.slots), pa.large_string()),
            "seen": pa.LargeListArray.from_arrays(offsets, np.concatenate([*seen, EMPTY])),
            "representation": _column(self.representations[:users], 0),
        }
        for number, (table, dim) in enumerate(zip(self.tables, self.dims)):
            if table.numel():  # without convolution, a layer keeps no inputs of it
                columns[f"state_{number}"] = _column(table.narrow(dim, 0, users), dim)
        made = pa.table(columns).replace_schema_metadata({"model": self._fingerprint()})
        partial = path.with_name(f"{path.name}.part")
        try:
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, made.schema) as sink:
                sink.write_table(made, max_chunksize=1 << 16)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, recommender: Recommender, path: Path | str) -> Live:
        """What `save` wrote. ValueError if another model made the states, or it is no such file."""
        live, path = cls(recommender), Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"states={path}: no such file")
        try:
            with pa.memory_map(str(path)) as file:
                made = pa.ipc.open_file(file).read_all()
            made.validate(full=True)
        except (pa.ArrowException, OSError, SystemError):
            raise ValueError(f"states={path}: not a file of Live.save") from None
        if (made.schema.metadata or {}).get(b"model") != live._fingerprint().encode():
            raise ValueError(
                f"states={path}: made by another model; start(histories) rebuilds them"
            )
        try:
            live._fill(made)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise ValueError(f"states={path}: damaged ({error})") from None
        return live

    def _fill(self, made: pa.Table) -> None:
        """Take the states of all users of a saved table."""
        self.slots.update((user, n) for n, user in enumerate(made["user_id"].to_pylist()))
        self.seen = [array("i", items) for items in made["seen"].to_pylist()]
        self.compacted = [0] * len(self.seen)
        self.representations = _tensor(made["representation"], self.representations, 0)
        for number, (table, dim) in enumerate(zip(self.tables, self.dims)):
            column = f"state_{number}"
            if column in made.column_names:
                self.tables[number] = _tensor(made[column], table, dim)
            else:
                self.tables[number] = _grown(table, dim, len(self))

    def _step(self, slots: np.ndarray, items: np.ndarray) -> None:
        """One event (B,) of each of B users in different slots, int64."""
        if self.step_in_place is not None and len(slots) <= FEW:
            self.step_in_place(items, slots, self.tables, self.representations)
            return
        where, what = (torch.from_numpy(a).to(self.recommender.device) for a in (slots, items))
        state = [table.index_select(d, where) for table, d in zip(self.tables, self.dims)]
        x, *state = self.step(what, *state)
        for table, dim, part in zip(self.tables, self.dims, state):
            table.index_copy_(dim, where, part)
        self.representations.index_copy_(0, where, x)

    def _drop_repeats(self, slot: int) -> None:
        """Once they may be more than half of a user's seen items."""
        seen = self.seen[slot]
        if len(seen) > 2 * self.compacted[slot]:
            self.seen[slot] = array("i", np.unique(np.array(seen, np.int32)).tobytes())
            self.compacted[slot] = len(self.seen[slot])

    def _admit(self, before: int) -> None:
        """Give the users after the first `before` a slot with the state of no history."""
        users = list(islice(reversed(self.slots), len(self.slots) - before))[::-1]
        capacity = len(self.representations)
        for _ in users:
            self.seen.append(array("i"))
            self.compacted.append(0)
        if len(self.slots) > capacity:
            capacity = max(FIRST, 1 << (len(self.slots) - 1).bit_length())
            for number, dim in enumerate(self.dims):
                self.tables[number] = _grown(self.tables[number], dim, capacity)
            self.representations = _grown(self.representations, 0, capacity)
        for table, dim, part in zip(self.tables, self.dims, self._init_state(users)):
            table.narrow(dim, before, len(users)).copy_(part)

    @torch.inference_mode()
    def _init_state(self, users: Sequence[str]) -> list[Tensor]:
        """The parts of the state of users without a history."""
        index = [self.recommender.user_index(users)] if self.by_user else []
        return tree_leaves(self.model.init_state(len(users), *index))

    def _fingerprint(self) -> str:
        """sha256 over item ids, the model's settings but its scan, and weights."""
        digest = hashlib.sha256("\0".join(self.recommender.item_ids).encode())
        settings = {**self.recommender.about["config"].get("model", {}), "scan": None}
        digest.update(repr(sorted(settings.items())).encode())
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class FlatStep(nn.Module):
    """A model's `step` on the parts of a state: items (B,), parts -> representation, parts."""

    def __init__(self, model: Any, state: Any):
        super().__init__()
        self.model, self.spec = model, tree_flatten(state)[1]

    def forward(self, items: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        x, state = self.model.step(items, tree_unflatten(list(parts), self.spec))
        return (x, *tree_leaves(state))


@torch.inference_mode()
def traced(
    step: FlatStep, init_state: Callable[[list[str]], list[Tensor]]
) -> Callable[..., tuple[Tensor, ...]]:
    """The same function as one graph: a single event of RecBLR is 2.6 times faster (measured).

    A step that a trace cannot hold (a shape or a value of the example becomes a constant) stays as
    it is; the trace is of two users and is compared on three.
    """

    def example(users: int) -> tuple[Tensor, ...]:
        state = [part.contiguous() for part in init_state([""] * users)]
        return step(torch.ones(users, dtype=torch.int64, device=state[0].device), *state)[1:]

    two, three = example(2), example(3)
    items = [torch.ones(users, dtype=torch.int64, device=two[0].device) for users in (2, 3)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated for torch.compile, which needs a compiler
            trace = torch.jit.trace(step.eval(), (items[0], *two), check_trace=False)
            made = torch.jit.freeze(trace)
        same = zip(made(items[1], *three), step(items[1], *three))
        for got, expected in same:
            torch.testing.assert_close(got, expected)
    except (RuntimeError, AssertionError) as error:
        log.info("step() runs as it is: no trace (%s)", str(error).splitlines()[0])
        return step
    return made


EMPTY = np.empty(0, np.int32)


def _several(ids: Any) -> bool:
    return not isinstance(ids, (str, int, np.integer))


def starts_by_user(model: Any) -> bool:
    """Whether the state of no history depends on the user."""
    return "user_ids" in inspect.signature(model.init_state).parameters


def user_dim(one: Tensor, two: Tensor) -> int:
    """The dimension along which the states of one and of two users differ."""
    (dim,) = [d for d, (a, b) in enumerate(zip(one.shape, two.shape)) if a != b]
    return dim


def rounds(slots: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of events (E,): each once, a slot's in order, no slot twice in one array."""
    order = np.argsort(slots, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(slots[order]) > 0))
    if len(first) == len(slots):
        yield np.arange(len(slots))
        return
    place = np.arange(len(slots)) - np.repeat(first, np.diff(np.append(first, len(slots))))
    by_place = order[np.argsort(place, kind="stable")]
    yield from np.split(by_place, np.bincount(place).cumsum()[:-1])


def _grown(table: Tensor, dim: int, capacity: int) -> Tensor:
    """The table with room for `capacity` users; what is new is not set."""
    shape = list(table.shape)
    shape[dim] = capacity
    grown = table.new_empty(shape)
    grown.narrow(dim, 0, table.shape[dim]).copy_(table)
    return grown


def _column(table: Tensor, dim: int) -> pa.FixedSizeListArray:
    """A row per user."""
    rows = table.movedim(dim, 0).flatten(1).contiguous().cpu().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _tensor(column: pa.ChunkedArray, like: Tensor, dim: int) -> Tensor:
    """A table of the rows of `column`, laid out as `like`."""
    shape = [size for d, size in enumerate(like.shape) if d != dim]
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    rows = torch.from_numpy(np.concatenate([*flat, np.empty(0, np.float32)]))
    return rows.view(len(column), *shape).movedim(0, dim).contiguous().to(like)
