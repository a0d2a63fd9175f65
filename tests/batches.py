"""Stores, batches and models from plain values, for tests."""

import numpy as np
import torch

from recblr.data.batch import SequenceBatch
from recblr.data.sequences import SequenceStore, leave_one_out


def batch_of(sequences, targets=None):
    """Pack lists of item ids. targets: one per sequence or one per position; None = all 0."""
    lengths = [0, *map(len, sequences)]
    cu_seqlens = torch.tensor(lengths).cumsum(0)
    return SequenceBatch(
        items=torch.tensor(
            [item for sequence in sequences for item in sequence], dtype=torch.int64
        ),
        cu_seqlens=cu_seqlens,
        targets=torch.tensor([0] * len(sequences) if targets is None else targets),
        user_ids=torch.arange(len(sequences)),
        cu_seqlens_host=cu_seqlens,
    )


def store_of(sequences, n_items=None):
    """A store with one user per list of item ids, raw ids `u0..` and `i1..`.

    n_items: the largest id if None.
    """
    if n_items is None:
        n_items = max((item for sequence in sequences for item in sequence), default=0)
    offsets = np.cumsum([0, *map(len, sequences)])
    return SequenceStore(
        items=np.array([item for sequence in sequences for item in sequence], np.int32),
        offsets=offsets,
        user_ids=np.array([f"u{user}" for user in range(len(sequences))], object),
        item_ids=np.array(["", *(f"i{item}" for item in range(1, n_items + 1))], object),
        order="file",
        split=leave_one_out(offsets),
    )


def histories(store):
    """Raw user id -> raw item ids in order."""
    return {
        user: store.item_ids[store.items[a:b]].tolist()
        for user, a, b in zip(store.user_ids, store.offsets[:-1], store.offsets[1:], strict=True)
    }


def random_sequences(lengths, n_items, seed=0):
    """Lists of item ids 1..n_items, drawn evenly."""
    random = np.random.default_rng(seed)
    return [random.integers(1, n_items + 1, length).tolist() for length in lengths]


def scramble(model, std=0.4):
    """Move every parameter far from its start, so that no part of a model is too weak to show.

    The decays keep their start, and scales stay around 1: else histories are soon forgotten.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("lambda_"):
                parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, std)
    return model
