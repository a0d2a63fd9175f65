"""A prepared `SequenceStore` on disk, memory-mapped when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

from recblr.data.download import sha256_of
from recblr.data.locks import alone
from recblr.data.sequences import SequenceStore, Split

logger = logging.getLogger(__name__)

_ARRAYS = ("items", "offsets", "train_stops", "val", "test")
_IDS = ("user_ids", "item_ids")


def cached(
    folder: Path, build: Callable[[], tuple[SequenceStore, dict[str, Any]]]
) -> tuple[SequenceStore, dict[str, Any]]:
    """What `build` returns, from `folder` if it is there and whole, else built and written.

    Two processes build once. A folder that cannot be written costs a warning, not the run.
    """
    with alone(folder, "preparing"):
        if (found := read_store(folder)) is not None:
            logger.info("prepared before: %s", folder)
            return found
        built = build()
        try:
            write_store(folder, *built)
        except OSError as error:
            logger.warning("%s: not kept (%s); paths.data=FOLDER is another place", folder, error)
            return built
    found = read_store(folder)
    assert found is not None, f"{folder}: written and not readable"
    logger.info("prepared, kept in %s (%s)", folder, _size(folder))
    return found


def write_store(folder: Path, store: SequenceStore, about: dict[str, Any]) -> None:
    """Written beside its place and renamed, so that a folder of this name is always whole."""
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        split = store.split
        arrays = (store.items, store.offsets, split.train_stops, split.val, split.test)
        for name, values in zip(_ARRAYS, arrays, strict=True):
            np.save(partial / f"{name}.npy", values)
        for name in _IDS:
            table = pa.table({"id": pa.array(getattr(store, name), pa.string())})
            feather.write_feather(table, str(partial / f"{name}.arrow"), "uncompressed")
        about = about | {"order": store.order, "split": split.name, "split_hash": store.split_hash}
        about["sha256"] = _digest(partial, about)
        (partial / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def read_store(folder: Path) -> tuple[SequenceStore, dict[str, Any]] | None:
    """None if there is nothing, or if its content is not what its hash says."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if _digest(folder, about) != about["sha256"]:
            raise ValueError("its content has changed")
        items, offsets, *split = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
        )
        user_ids, item_ids = (
            feather.read_table(str(folder / f"{name}.arrow"))["id"].to_numpy() for name in _IDS
        )
        store = SequenceStore(
            items, offsets, user_ids, item_ids, about["order"], Split(about["split"], *split)
        )
        return store, about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = str(error)
    logger.warning("%s: not usable (%s), preparing anew", folder, fault)
    return None


def _digest(folder: Path, about: dict[str, Any]) -> str:
    """sha256 of all that is in a folder, `about` included."""
    plain = {key: value for key, value in about.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in (*(f"{array}.npy" for array in _ARRAYS), *(f"{ids}.arrow" for ids in _IDS)):
        digest.update(sha256_of(folder / name).encode())
    return digest.hexdigest()


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB"
