"""A prepared `SequenceStore` on disk, memory-mapped when it is read."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from pyarrow import feather

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
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        return _not_kept(folder, error, build())
    try:
        if (found := read_store(folder)) is not None:
            logger.info("prepared before: %s", folder)
            return found
        built = build()
        try:
            write_store(folder, *built)
        except OSError as error:
            return _not_kept(folder, error, built)
        found = read_store(folder)
        assert found is not None, f"{folder}: written and not readable"
        logger.info("prepared, kept in %s (%s)", folder, _size(folder))
        return found
    finally:
        lock.release()
        with suppress(OSError):  # whoever waits for this lock looks for the folder again
            Path(lock.lock_file).unlink()
            folder.parent.rmdir()  # both only if empty: nothing came of it
            folder.parent.parent.rmdir()


def _not_kept(
    folder: Path, error: OSError, built: tuple[SequenceStore, dict[str, Any]]
) -> tuple[SequenceStore, dict[str, Any]]:
    logger.warning("%s: not kept (%s); paths.data=FOLDER is another place", folder, error)
    return built


def write_store(folder: Path, store: SequenceStore, about: dict[str, Any]) -> None:
    """Written beside its place and renamed, so that a folder of this name is always whole."""
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        split = store.split
        arrays = (store.items, store.offsets, split.train_stops, split.val, split.test)
        for name, values in zip(_ARRAYS, arrays, strict=True):
            np.save(partial / f"{name}.npy", values)
        for name in _IDS:
            table = pa.table({"id": pa.array(getattr(store, name), pa.string())})
            feather.write_feather(table, str(partial / f"{name}.arrow"), "uncompressed")
        about = about | {"order": store.order, "split": split.name, "split_hash": store.split_hash}
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
        items, offsets, *split = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
        )
        user_ids, item_ids = (
            feather.read_table(str(folder / f"{name}.arrow"))["id"].to_numpy() for name in _IDS
        )
        store = SequenceStore(
            items, offsets, user_ids, item_ids, about["order"], Split(about["split"], *split)
        )
        if store.split_hash == about["split_hash"]:
            return store, about
        fault = "its content has changed"
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        fault = str(error)
    logger.warning("%s: not usable (%s), preparing anew", folder, fault)
    return None


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB"
