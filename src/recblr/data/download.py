"""Get a raw file once: mirrors, resume, checks.

    <folder>/NAME  checksums.lock  NAME.part  NAME.part.json

NAME appears only whole and checked. Until then its bytes are in `NAME.part`; `NAME.part.json` says
which version of the file they belong to, so that a killed process is continued and two versions
are never spliced. `checksums.lock` is for `sha256sum -c`: the files without a published checksum,
as they were when first downloaded.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from recblr.data.locks import alone

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # in a row without a new byte, after a connection broke
WAIT = 1.0  # seconds before each of them

logger = logging.getLogger(__name__)


class _Failed(Exception):
    """Why a URL did not give the file."""


class _Broken(_Failed):
    """The connection did not come about or ended early: worth another attempt."""


def fetch(urls: Sequence[str], folder: Path, *, sha256: str | None = None) -> Path:
    """The path of `<folder>/<file name of the first URL>`, downloaded if it is not there.

    urls: mirrors, tried in order. sha256: of the wanted file; without it, the one that the first
    download recorded in `checksums.lock`.

    Raises ValueError or OSError, one line with the file, what was found and the way out.
    """
    path = folder / file_name(urls)
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(path, "getting"):
                if not path.exists():
                    _download(urls, path, sha256)
                    return path
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                reason = error.strerror or error
                raise OSError(
                    f"{path}: cannot be written ({reason}); set paths.data=FOLDER to another place"
                ) from None
            raise OSError(
                f"{path}: no space left on the device. Free some and run the same again, which "
                "continues the download, or set paths.data=FOLDER to another place"
            ) from None
    expected, way_round = _expected(path, sha256)
    origin = None if sha256 else _origin(path)
    if origin and origin not in urls:
        raise ValueError(
            f"{path}: came from {origin}, which is not in data.urls. Delete the file to get it "
            f"again, or set data.path={path}"
        )
    if expected and (found := sha256_of(path)) != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, expected {expected}. Delete the file to get it again; "
            f"{way_round}"
        )
    return path


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def file_name(urls: Sequence[str]) -> str:
    """That of the first URL. Raises ValueError for what is neither http nor https."""
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(
                f"data.urls: '{url}' is neither http nor https. Get the file by hand and set "
                "data.path=FILE"
            )
    name = PurePosixPath(unquote(urlsplit(urls[0]).path)).name if urls else ""
    if not name.strip(".") or set(name) & set('\\:*?"<>|') or not name.isprintable():
        raise ValueError(f"data.urls={list(urls)}: the first one does not end in a file name")
    return name


def _expected(path: Path, sha256: str | None) -> tuple[str | None, str]:
    """The sha256 that the file must have, published or recorded, and the way round it."""
    if sha256:
        return sha256.lower(), "data.sha256=null takes it as it is"
    lines = path.with_name("checksums.lock")
    if lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            if line[64:66] in ("  ", " *") and line[66:] == path.name:
                return line[:64], "if the change is wanted, delete its line in checksums.lock"
    return None, ""


def _origin(path: Path) -> str | None:
    """The URL that a recorded file came from: the comment above its line."""
    lines = path.with_name("checksums.lock")
    if lines.exists():
        text = lines.read_text(encoding="utf-8").splitlines()
        for above, line in itertools.pairwise(text):
            if line[66:] == path.name and above.startswith("# "):
                return above[2:]
    return None


def _record(path: Path, digest: str, url: str) -> None:
    """Append in one write: of two processes that record different files, none loses its line."""
    with path.with_name("checksums.lock").open("a+", encoding="utf-8", newline="\n") as file:
        file.seek(0)
        text = file.read()
        file.write("\n" * (text[-1:] not in ("", "\n")) + f"# {url}\n{digest}  {path.name}\n")
    logger.info(
        "%s: no published checksum is known; its sha256 %s is recorded in checksums.lock and "
        "expected from now on",
        path.name,
        digest,
    )


def _download(urls: Sequence[str], path: Path, sha256: str | None) -> None:
    part = path.with_name(f"{path.name}.part")
    expected, way_round = _expected(path, sha256)
    failed = []
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        show = partial(progress.update, progress.add_task(path.name, total=None))
        for url in urls:
            if progress.disable:
                logger.info("getting %s from %s", path.name, url)
            try:
                digest = _get_checked(url, part, expected, way_round, show)
                break
            except _Failed as error:
                failed.append(f"{url}: {error}")
                logger.warning("%s", failed[-1])
        else:
            raise ValueError(
                f"{path}: no URL gave the file ({'; '.join(failed)}). Get it by hand and set "
                f"data.path=FILE, or put it into the folder '{path.parent}' (paths.data)"
            )
    if not expected:
        _record(path, digest, url)
    part.replace(path)
    _version_file(part).unlink(missing_ok=True)
    if progress.disable:
        logger.info("got %s (%d bytes)", path, _size(path))


def _get_checked(
    url: str,
    part: Path,
    expected: str | None,
    way_round: str,
    show: Callable[..., None],
) -> str:
    """Complete `part` from one URL. Its sha256; a part that is not the wanted file is deleted."""
    earlier = _size(part)
    _get(url, part, expected is not None, show)
    digest = sha256_of(part)
    with part.open("rb") as file:
        start = file.read(CHUNK)
    if not start:
        fault = "an empty answer"
    elif re.match(rb"[\s\xef\xbb\xbf]*<(!doctype html|html)\b", start, re.IGNORECASE):
        fault = "a web page, not the file"
    elif expected and expected != digest:
        fault = f"sha256 is {digest}, expected {expected}; {way_round}"
    else:
        return digest
    _discard(part)
    if earlier:  # the fault may lie in the bytes of an earlier call: once more, from zero
        return _get_checked(url, part, expected, way_round, show)
    raise _Failed(fault)


def _get(url: str, part: Path, hash_known: bool, show: Callable[..., None]) -> None:
    """Go on after broken connections, as long as that brings new bytes."""
    most, left = _size(part), 0
    while True:
        try:
            return _attempt(url, part, hash_known, show)
        except _Broken:
            if _size(part) > most:
                most, left = _size(part), ATTEMPTS
            if not left:
                raise
        left -= 1
        time.sleep(WAIT)


def _attempt(url: str, part: Path, hash_known: bool, show: Callable[..., None]) -> None:
    """One request: go on where `part` ends if that is safe, else start from zero."""
    version = _read_version(part)
    offset = _size(part) if version.get("validator") or hash_known else 0
    request = Request(url, headers={"User-Agent": f"recblr/{metadata.version('recblr')}"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if version.get("validator"):
            request.add_header("If-Range", version["validator"])
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not offset:
            raise _Failed(f"HTTP {error.code} {error.reason}") from None
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return  # nothing is missing
        _discard(part)
        return _attempt(url, part, hash_known, show)
    except (OSError, HTTPException, UnicodeError) as error:
        raise _Broken(_reason(error)) from None
    with response:
        total = None if response.length is None else offset + response.length
        if response.status == 206 and offset:
            if not _continues(response, offset, version, hash_known):
                _discard(part)
                return _attempt(url, part, hash_known, show)
            total = _range(response)[1] or total
        elif response.status == 200:
            offset, total = 0, response.length
        else:
            raise _Failed(f"HTTP {response.status} {response.reason}")
        with part.open("ab" if offset else "wb") as file:
            if not offset:  # the part is empty now: never old bytes under a new version
                version = {"validator": _validator(response), "size": total}
                _version_file(part).write_text(json.dumps(version), encoding="utf-8")
            show(completed=offset, total=total)
            for data in _body(response):
                file.write(data)
                offset += len(data)
                show(completed=offset, total=total)
    if total is None and not hash_known and not response.chunked:
        logger.warning("%s does not say how long the file is: it may have been cut short", url)
    if total is not None and offset != total:
        raise _Broken(f"the connection broke after {offset} of {total} bytes")


def _body(response: HTTPResponse) -> Iterator[bytes]:
    """The bytes as they come: `read` would lose what it waits with when the connection breaks.

    A server that closes before Content-Length ends this without an error, inside a chunk with one.
    """
    left = response.length  # counted here: read1 of Python 3.10 reads on past it
    try:
        while data := response.read1(CHUNK if left is None else min(left, CHUNK)):
            yield data
            left = None if left is None else left - len(data)
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from None


def _continues(
    response: HTTPResponse, offset: int, version: dict[str, Any], hash_known: bool
) -> bool:
    """Whether a 206 answer is the rest of the file that `part` began; not all heed If-Range."""
    start, total = _range(response)
    old, new = version.get("validator"), _validator(response)
    same = old == new if old and new else hash_known
    return same and start == offset and version.get("size") in (None, total)


def _range(response: HTTPResponse) -> tuple[int | None, int | None]:
    """First byte and size of the whole file; None where it is not said."""
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(response: HTTPResponse) -> str | None:
    """What `If-Range` takes: not a weak ETag."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        return json.loads(_version_file(part).read_text(encoding="utf-8"))
    return {}


def _discard(part: Path) -> None:
    part.unlink()
    _version_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__
