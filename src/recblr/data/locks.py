"""One process at a time."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Keep other processes of this machine from making the same file or folder.

    The lock is a file of the system's temporary folder: it may stay there, so that nobody locks a
    file that another is about to remove, and nothing is left beside the user's files.
    """
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir(), f"recblr-{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is %s %s, waiting", doing, path)
        lock.acquire()
    except OSError as error:
        logger.warning("%s: not locked (%s)", lock.lock_file, error)
    try:
        yield
    finally:
        lock.release()
