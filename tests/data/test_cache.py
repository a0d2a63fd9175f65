"""A prepared log on disk: found again, never stale, never half written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import histories, store_of

from recblr.data import cache, catalog
from recblr.data.catalog import Card, LogFile

LINES = "user_id,item_id,timestamp\nb,y,2\nb,x,1\na,x,1\na,y,2\na,rare,3\n"
PREPARE = """
import sys, logging
from recblr.data import cache
from recblr.data.catalog import LogFile
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
{before}
LogFile(name="mine", path=sys.argv[1], folder=sys.argv[2], min_interactions=1).load()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "data"


def load(path: str, folder: Path, **arguments):
    arguments = {"min_interactions": 1} | arguments
    return LogFile(name="mine", path=path, folder=str(folder), **arguments).load(seed=1)


def places(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache").iterdir()}


def test_second_start_reads_the_cache_and_not_the_log(write, folder, monkeypatch):
    path = write(LINES)
    first = load(path, folder)
    monkeypatch.setattr(catalog, "read_log", None)
    second = load(path, folder)
    assert histories(first) == histories(second) == {"b": ["x", "y"], "a": ["x", "y", "rare"]}
    assert isinstance(second.items, np.memmap) and second.items.dtype == np.int32
    assert first.split_hash == second.split_hash and second.order == "exact"
    assert len(places(folder)) == 1


def test_cached_start_prints_the_same_statistics(write, folder, caplog):
    texts = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("INFO", "recblr.data.catalog"):
            load(write(LINES), folder, repeats="last")
        texts.append([r.getMessage() for r in caplog.records if r.name.endswith("catalog")])
    assert texts[0] == texts[1] and len(texts[0]) > 3


@pytest.mark.parametrize(
    "change",
    [
        {"min_interactions": 2}, {"repeats": "last"}, {"order": "item_id"}, {"split": "temporal"},
        {"order": "shuffled"}, {"users": 1}, {"max_bad_rows": 1}, {"format": "table"},
        {"cut": [0.5, 0.9]}, {"separator": ","}, {"quotes": False}, {"raw_format": "sequences"},
        {"member": "log.csv"},
        {"columns": {"user": "item_id", "item": "user_id", "time": "timestamp"}},
        {"card": Card(known_order={"0" * 32: "item_id"})},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_recipe_has_another_key(write, change):
    TRIED.update(change)
    log = LogFile(name="mine", path=write(LINES), min_interactions=1)
    assert replace(log, **change)._key(Path(write(LINES)), 1) != log._key(Path(write(LINES)), 1)


TRIED: set[str] = set()


def test_every_setting_of_a_log_was_tried_above():
    elsewhere = {"name", "path", "urls", "sha256", "folder"}
    assert set(LogFile.__dataclass_fields__) == elsewhere | TRIED


def test_seed_counts_where_rows_are_shuffled(write, folder):
    log = LogFile(name="mine", path=write(LINES), min_interactions=1, folder=str(folder))
    for order, n_places in (("exact", 1), ("shuffled", 2)):
        keys = {replace(log, order=order)._key(Path(write(LINES)), seed) for seed in (1, 2)}
        assert len(keys) == n_places


def test_changed_file_of_a_folder_is_another_log(tmp_path, folder):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.csv").write_text(LINES)
    before = histories(load(str(logs), folder))
    (logs / "a.csv").write_text(LINES.replace("rare", "oare"))
    assert histories(load(str(logs), folder)) != before


def test_changed_file_of_the_same_size_and_time_is_prepared_anew(write, folder):
    path = write(LINES)
    before = os.stat(path)
    load(path, folder)
    write(LINES.replace("b,y", "b,z"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert histories(load(path, folder))["b"] == ["x", "z"]


def test_moved_or_renamed_file_is_the_same_log(write, folder, tmp_path):
    load(write(LINES), folder)
    load(write(LINES, "other.csv"), folder)
    assert len(places(folder)) == 1


def test_changed_code_prepares_anew(write, folder, monkeypatch, tmp_path):
    path = write(LINES)
    load(path, folder)
    copy = tmp_path / "code"
    copy.mkdir()
    for module in Path(catalog.__file__).parent.glob("*.py"):
        (copy / module.name).write_bytes(module.read_bytes())
    monkeypatch.setattr(catalog, "__file__", str(copy / "catalog.py"))
    load(path, folder)
    assert len(places(folder)) == 1
    (copy / "readers.py").write_text("changed")
    load(path, folder)
    assert len(places(folder)) == 2


@pytest.mark.parametrize("name", ["items.npy", "test.npy", "user_ids.arrow", "about.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty", "other"])
def test_damaged_cache_is_prepared_anew(write, folder, caplog, name, damage):
    path = write(LINES)
    whole = histories(load(path, folder))
    (place,) = (folder / "cache").iterdir()
    file = place / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        file.write_bytes(b"[]")
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b"exact") if name == "about.json" else -1
        if name == "user_ids.arrow":
            at = content.index(b"ba")
        content[at] ^= 1
        file.write_bytes(content)
    assert histories(load(path, folder)) == whole
    assert "not usable" in caplog.text and "preparing anew" in caplog.text
    caplog.clear()
    load(path, folder)
    assert "not usable" not in caplog.text


def prepare(before: str, path: str, folder: Path, **options) -> subprocess.Popen:
    code = PREPARE.format(before=before)
    command = [sys.executable, "-c", code, path, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_killed_while_writing_leaves_nothing_that_is_taken_for_a_store(write, folder):
    path = write(LINES)
    kill = f"""
import numpy, os
save = numpy.save
def dying(file, values):
    if "test" in str(file): os.kill(os.getpid(), {int(signal.SIGKILL)})
    save(file, values)
numpy.save = dying
"""
    process = prepare(kill, path, folder)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert all(name.endswith((".part", ".lock")) for name in places(folder))
    assert histories(load(path, folder))["b"] == ["x", "y"]
    (place,) = places(folder)
    assert not place.endswith(".part")


def test_two_processes_prepare_once(write, folder):
    path = write(LINES)
    slow = """
import time
write = cache.write_store
def late(*arguments):
    time.sleep(0.5)
    write(*arguments)
cache.write_store = late
"""
    processes = [prepare(slow, path, folder) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("prepared, kept in" in text for text in printed) == 1
    assert sum("prepared before" in text for text in printed) == 1
    assert len(places(folder)) == 1


def test_full_disk_costs_a_warning_and_not_the_run(write, folder, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    assert histories(load(write(LINES), folder))["b"] == ["x", "y"]
    assert "not kept" in caplog.text and "No space left on device" in caplog.text
    assert places(folder) == set()


def test_folder_that_cannot_be_made_costs_a_warning(write, tmp_path, caplog):
    (tmp_path / "data").write_text("a file in its place")
    assert histories(load(write(LINES), tmp_path / "data"))["b"] == ["x", "y"]
    assert "not kept" in caplog.text


def test_failed_preparation_leaves_no_folder(write, folder):
    with pytest.raises(ValueError, match="nothing is left"):
        load(write(LINES), folder, min_interactions=9)
    assert not folder.exists()


def test_ids_of_any_text_come_back(tmp_path):
    store = store_of([[1, 2], [2]])
    store.user_ids[:] = ["two\nlines", "日本語 😀"]
    cache.write_store(tmp_path / "store", store, {})
    found = cache.read_store(tmp_path / "store")
    assert found is not None and found[0].user_ids.tolist() == ["two\nlines", "日本語 😀"]
    assert found[0].item_ids.tolist() == store.item_ids.tolist()
