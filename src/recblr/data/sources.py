"""Where a log's bytes come from: a file, a folder of files or a zip archive, plain or gz."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from recblr.data.download import sha256_of

BOM = b"\xef\xbb\xbf"
HEAD = 1 << 16  # bytes that decide on a format


@dataclass(frozen=True)
class Source:
    """One stream of bytes. Archives are read in place: nothing is ever unpacked to disk."""

    path: Path
    member: str | None = None  # of a zip archive

    def __str__(self) -> str:
        return f"data.path='{self.path}'" + (f" ({self.member})" if self.member else "")

    @property
    def name(self) -> str:
        return self.path.name

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, uncompressed, after a byte-order mark.

        Raises ValueError, also later while it is read, if an archive is damaged or cut short.
        """
        with contextlib.ExitStack() as stack:
            try:
                if self.member:
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    raw = stack.enter_context(archive.open(self.member))
                else:
                    raw = stack.enter_context(self.path.open("rb"))
                stream = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 18)
                if stream.peek(2)[:2] == b"\x1f\x8b":
                    unpacked = stack.enter_context(gzip.open(stream))
                    stream = io.BufferedReader(cast(io.RawIOBase, unpacked), 1 << 18)
                if stream.peek(3)[:3] == BOM:
                    stream.read(3)
                yield stream
            except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
                kind = "zip" if self.member else "gz"
                raise ValueError(
                    f"{self}: the {kind} file is damaged or cut short ({error}). Get it again."
                ) from None
            except RuntimeError as error:
                if "encrypted" not in str(error):
                    raise
                raise ValueError(f"{self}: the archive needs a password. Unpack it") from None

    def read(self, limit: int = -1) -> bytes:
        with self.open() as stream:
            return stream.read(limit)


def find_sources(path: str | Path, member: str | None = None) -> list[Source]:
    """The files of a path, in the order of their names.

    path: a file, or a folder, of which every file counts, also in folders below it, whose name
        does not begin with `.` or `_`.
    member: which file of a zip archive; needed if it has several.
    """
    return [_source(file, member) for file in _files(Path(path).expanduser())]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"data.path='{path}': no such file")
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p[0] in "._" for p in file.relative_to(path).parts)
    ]
    if not files:
        raise ValueError(f"data.path='{path}': the folder has no files")
    return files


def _source(path: Path, member: str | None) -> Source:
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":
        return Source(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if _is_file(info)]
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"data.path='{path}': the zip file is damaged or cut short ({error}). Get it again."
        ) from None
    if member is None and len(names) == 1:
        return Source(path, names[0])
    if member in names:
        return Source(path, member)
    found = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    what = f"no file '{member}' in the archive" if member else "the archive has several files"
    raise ValueError(f"data.path='{path}': {what} (found: {found}). Set data.member=...")


def _is_file(info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and not info.filename.startswith("__MACOSX/")


def fingerprint(path: str | Path) -> str:
    """sha256 (hex) of a file, or of a folder's file names and contents."""
    path = Path(path).expanduser()
    files = _files(path)
    if files == [path]:
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()
