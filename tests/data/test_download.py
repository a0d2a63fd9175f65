"""Downloads against a real server on this machine whose every answer is scripted."""

from __future__ import annotations

import hashlib
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recblr.data import download
from recblr.data.download import fetch, sha256_of

OLD = bytes(range(256)) * 1200  # 300 kB, so that it comes in several reads
NEW = OLD[::-1]
CUT = 200_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Answer:
    body: bytes = OLD
    status: int = 200
    etag: str | None = '"1"'
    modified: str | None = None
    ranges: bool = True  # False: 200 with the whole body, whatever was asked
    heeds_if_range: bool = True
    shift: int = 0  # a 206 answer begins that many bytes too late
    at_most: int | None = None  # a 206 answer is no longer than that
    cut: int | None = None  # bytes of the answer after which the connection closes
    pause: int | None = None  # bytes after which it stands still until `Site.go`
    chunked: bool = False

    def send(self, handler: BaseHTTPRequestHandler, go: threading.Event) -> None:
        asked, if_range = handler.headers.get("Range"), handler.headers.get("If-Range")
        head, body, status = {"ETag": self.etag, "Last-Modified": self.modified}, self.body, 200
        stale = if_range and self.heeds_if_range and if_range not in (self.etag, self.modified)
        if self.status != 200:
            status, body = self.status, b"sorry"
        elif asked and self.ranges and not stale:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + self.shift
            if start >= len(body):
                status, head, body = 416, {"Content-Range": f"bytes */{len(body)}"}, b""
            else:
                end = min(len(body), start + (self.at_most or len(body)))
                head["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
                status, body = 206, body[start:end]
        handler.send_response(status)
        head |= {"Transfer-Encoding": "chunked"} if self.chunked else {"Content-Length": len(body)}
        for name, value in head.items():
            if value is not None:
                handler.send_header(name, str(value))
        handler.end_headers()
        if self.chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        if self.pause is not None:
            handler.wfile.write(body[: self.pause])
            go.wait(10)
            body = body[self.pause :]
        handler.wfile.write(body[: self.cut])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [Answer(status=404)])
        with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            (answers.pop(0) if len(answers) > 1 else answers[0]).send(self, self.server.go)

    def log_message(self, *args) -> None:
        pass


class Site(ThreadingHTTPServer):
    """answers: path -> what it is answered, one after the other; the last one again and again."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.go = threading.Event()

    def url(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def leave_part(site: Site, folder: Path, first: Answer, **kwargs) -> str:
    """A call that ends with a broken connection and leaves its part. The URL."""
    url = site.url("/log.csv", first, Answer(status=503))
    with pytest.raises(ValueError, match="HTTP 503"):
        fetch([url], folder, **kwargs)
    assert (folder / "log.csv.part").exists() and not (folder / "log.csv").exists()
    site.requests.clear()
    return url


def start_process(url: str, folder: Path) -> subprocess.Popen:
    code = (
        "import logging, sys; from pathlib import Path; from recblr.data.download import fetch; "
        "logging.basicConfig(level='INFO', format='%(message)s'); "
        "print(fetch([sys.argv[1]], Path(sys.argv[2])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_file_is_downloaded_once_into_a_new_folder(site, folder):
    url = site.url("/some/log%20file.csv?raw=1", Answer())
    path = fetch([url], folder / "deeper")
    assert path == folder / "deeper" / "log file.csv" and path.read_bytes() == OLD
    assert names(path.parent) == {"log file.csv", "checksums.lock"}
    assert site.requests[0][1]["User-Agent"].startswith("recblr/")
    assert fetch([url], folder / "deeper") == path and len(site.requests) == 1


@pytest.mark.parametrize("validator", [{}, {"etag": None, "modified": "Mon, 01 Jan 2024"}])
def test_broken_connection_is_resumed_at_the_missing_byte(site, folder, validator):
    url = site.url("/log.csv", Answer(cut=CUT, **validator), Answer(**validator))
    assert fetch([url], folder).read_bytes() == OLD
    assert site.asked() == [None, f"bytes={CUT}-"]
    assert site.requests[1][1]["If-Range"] == validator.get("modified", '"1"')
    assert names(folder) == {"log.csv", "checksums.lock"}


def test_attempts_go_on_as_long_as_bytes_come(site, folder):
    cuts = [Answer(cut=1000)] * (2 * download.ATTEMPTS + 2)
    assert fetch([site.url("/log.csv", *cuts, Answer())], folder).read_bytes() == OLD


def test_attempts_end_when_no_byte_comes(site, folder):
    url = site.url("/log.csv", Answer(cut=CUT, ranges=False))
    with pytest.raises(ValueError, match=rf"the connection broke after {CUT} of {len(OLD)} bytes"):
        fetch([url], folder)
    assert len(site.requests) == 1 + download.ATTEMPTS
    assert not (folder / "log.csv").exists()


def test_range_shorter_than_asked_is_not_the_end(site, folder):
    url = site.url("/log.csv", Answer(cut=CUT), Answer(at_most=1000), Answer())
    assert fetch([url], folder).read_bytes() == OLD
    assert site.asked() == [None, f"bytes={CUT}-", f"bytes={CUT + 1000}-"]


def test_part_of_a_killed_process_is_continued(site, folder):
    url = site.url("/log.csv", Answer(pause=CUT), Answer())
    process = start_process(url, folder)
    part = folder / "log.csv.part"
    wait_for(lambda: part.exists() and part.stat().st_size > CUT // 2)
    process.kill()
    process.communicate()
    size = part.stat().st_size
    assert sha256_of(fetch([url], folder)) == sha(OLD)
    assert site.asked() == [None, f"bytes={size}-"]
    assert names(folder) == {"log.csv", "checksums.lock"}


@pytest.mark.parametrize(
    "after",
    [
        Answer(NEW, etag='"2"'),
        Answer(NEW, etag='"2"', heeds_if_range=False),
        Answer(NEW, etag=None, heeds_if_range=False),
        Answer(NEW + b"1", heeds_if_range=False),
        Answer(NEW[: CUT - 1], etag='"2"', heeds_if_range=False),
    ],
    ids=["200", "206_other_etag", "206_no_etag", "206_other_size", "416_shorter"],
)
def test_changed_file_is_not_spliced(site, folder, after):
    url = site.url("/log.csv", Answer(cut=CUT), after)
    assert fetch([url], folder).read_bytes() == after.body
    assert site.asked()[:2] == [None, f"bytes={CUT}-"]


def test_range_that_begins_elsewhere_is_not_appended(site, folder):
    url = site.url("/log.csv", Answer(cut=CUT), Answer(shift=7), Answer())
    assert fetch([url], folder).read_bytes() == OLD


def test_server_without_ranges_is_read_from_zero(site, folder):
    url = site.url("/log.csv", Answer(cut=CUT), Answer(ranges=False))
    assert fetch([url], folder).read_bytes() == OLD


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_validator_only_a_known_hash_allows_a_resume(site, folder, etag):
    url = site.url("/log.csv", Answer(cut=CUT, etag=etag), Answer(NEW, etag=etag))
    assert fetch([url], folder / "unknown").read_bytes() == NEW
    assert site.asked() == [None, None]
    site.requests.clear()
    site.url("/log.csv", Answer(cut=CUT, etag=etag), Answer(etag=etag))
    assert fetch([url], folder / "known", sha256=sha(OLD)).read_bytes() == OLD
    assert site.asked() == [None, f"bytes={CUT}-"]


def test_hash_over_an_earlier_part_decides_and_the_file_is_read_anew(site, folder):
    """The part is of another file, and nothing but the hash can tell."""
    url = leave_part(site, folder, Answer(NEW, etag=None, cut=CUT), sha256=sha(OLD))
    site.url("/log.csv", Answer(etag=None))
    assert fetch([url], folder, sha256=sha(OLD)).read_bytes() == OLD
    assert site.asked() == [f"bytes={CUT}-", None]


def test_part_that_lacks_nothing_is_finished_without_its_bytes(site, folder):
    header = len(b"%x\r\n" % len(OLD))
    url = leave_part(site, folder, Answer(chunked=True, cut=header + len(OLD)))
    site.url("/log.csv", Answer())
    assert fetch([url], folder).read_bytes() == OLD
    assert site.asked() == [f"bytes={len(OLD)}-"]


def test_chunked_answer_cut_short_is_a_broken_connection(site, folder):
    cut = Answer(chunked=True, cut=CUT)
    assert fetch([site.url("/log.csv", cut, Answer())], folder).read_bytes() == OLD
    assert site.asked()[1] == f"bytes={CUT - len(b'%x;;' % len(OLD))}-"
    whole = site.url("/whole.csv", Answer(chunked=True))
    assert fetch([whole], folder).read_bytes() == OLD


def test_another_mirror_continues_the_same_version(site, folder):
    first = site.url("/log.csv", Answer(cut=CUT), Answer(status=500))
    mirror = site.url("/mirror", Answer())
    assert fetch([first, mirror], folder).read_bytes() == OLD
    assert site.asked() == [None, f"bytes={CUT}-", f"bytes={CUT}-"]


def test_file_that_is_not_the_expected_one_is_left_for_the_next_mirror(site, folder, caplog):
    bad, good = site.url("/log.csv", Answer(NEW)), site.url("/mirror", Answer())
    assert fetch([bad, good], folder, sha256=sha(OLD).upper()).read_bytes() == OLD
    assert site.asked() == [None, None] and sha(NEW) in caplog.text
    assert names(folder) == {"log.csv"}, "a known checksum is not recorded"


def test_wrong_hash_everywhere_names_both_and_keeps_nothing(site, folder):
    url = site.url("/log.csv", Answer(NEW))
    with pytest.raises(ValueError) as error:
        fetch([url], folder, sha256=sha(OLD))
    message = str(error.value)
    for part in (str(folder / "log.csv"), url, sha(NEW), sha(OLD), "data.sha256=null", "data.path"):
        assert part in message
    assert "\n" not in message and not names(folder) - {"log.csv.lock"}


def test_mirrors_that_fail_are_passed_over_with_one_request_each(site, folder):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        urls = [
            f"http://127.0.0.1:{closed.getsockname()[1]}/log.csv",
            site.url("/gone", Answer(status=404)),
            site.url("/ill", Answer(status=503)),
            site.url("/mute", Answer(cut=0)),
            site.url("/good", Answer()),
        ]
        assert fetch(urls, folder).read_bytes() == OLD
    assert site.paths() == ["/gone", "/ill", "/mute", "/good"]


def test_server_that_stands_still_is_left_after_the_timeout(site, folder, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    urls = [site.url("/log.csv", Answer(pause=0)), site.url("/mirror", Answer())]
    assert fetch(urls, folder).read_bytes() == OLD
    assert site.paths() == ["/log.csv", "/mirror"]


def test_error_lists_every_url_and_the_ways_out(site, folder):
    urls = [site.url("/log.csv", Answer(status=404)), site.url("/b", Answer(status=500))]
    with pytest.raises(ValueError) as error:
        fetch(urls, folder)
    message = str(error.value)
    for part in (f"{urls[0]}: HTTP 404", f"{urls[1]}: HTTP 500", "data.path=FILE", "paths.data"):
        assert part in message
    assert str(folder / "log.csv") in message and "\n" not in message


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><title>Sorry</title>",
        b"\xef\xbb\xbf\r\n <HTML lang=en>",
        b"<!doctype HTML>",
    ],
)
def test_web_page_is_not_the_file(site, folder, page):
    url = site.url("/log.csv", Answer(page))
    with pytest.raises(ValueError, match="a web page, not the file"):
        fetch([url], folder)
    assert not names(folder) - {"log.csv.lock"}
    assert fetch([url, site.url("/b", Answer())], folder).read_bytes() == OLD


def test_empty_answer_is_not_the_file(site, folder):
    with pytest.raises(ValueError, match="an empty answer"):
        fetch([site.url("/log.csv", Answer(b""))], folder)


def test_two_processes_download_once(site, folder):
    url = site.url("/log.csv", Answer(pause=CUT))
    first = start_process(url, folder)
    wait_for(lambda: site.requests)
    second = start_process(url, folder)
    assert second.stderr and "log.csv, waiting" in (second.stderr.readline())
    site.go.set()
    for process in (first, second):
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert Path(out.strip()) == folder / "log.csv"
    assert len(site.requests) == 1 and (folder / "log.csv").read_bytes() == OLD
    assert names(folder) - {"log.csv.lock"} == {"log.csv", "checksums.lock"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_full_disk_names_the_file_and_the_way_out(site, folder):
    folder.mkdir()
    (folder / "log.csv.part").symlink_to("/dev/full")
    urls = [site.url("/log.csv", Answer()), site.url("/mirror", Answer())]
    with pytest.raises(OSError, match="no space left on the device") as error:
        fetch(urls, folder)
    message = str(error.value)
    assert str(folder / "log.csv") in message and "paths.data=FOLDER" in message
    assert site.paths() == ["/log.csv"], "another mirror would not help"
    assert (folder / "log.csv.part").is_symlink() and not (folder / "log.csv").exists()


def test_unknown_file_is_recorded_on_first_use(site, folder, caplog):
    caplog.set_level(logging.INFO)
    folder.mkdir()
    earlier = f"{sha(b'x')}  x.csv"
    (folder / "checksums.lock").write_text(earlier)  # edited by hand: no newline at the end
    (folder / "x.csv").write_bytes(b"x")
    url = site.url("/log.csv", Answer())
    fetch([url], folder)
    lines = (folder / "checksums.lock").read_bytes()
    assert lines == f"{earlier}\n# {url}\n{sha(OLD)}  log.csv\n".encode()
    assert "no published checksum is known" in caplog.text and sha(OLD) in caplog.text
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--strict", "-c", "checksums.lock"],
            cwd=folder,
            check=True,
            capture_output=True,
        )


def test_file_of_another_url_is_not_taken_for_this_one(site, folder):
    first, second = (site.url(f"/{where}/log.csv", Answer()) for where in ("one", "two"))
    path = fetch([first], folder)
    with pytest.raises(ValueError, match=rf"came from {first}, which is not in data.urls"):
        fetch([second], folder)
    assert fetch([second, first], folder) == path
    path.unlink()
    assert fetch([second], folder) == path


def test_file_that_differs_from_its_record_is_refused(site, folder):
    url = site.url("/log.csv", Answer())
    path = fetch([url], folder)
    path.write_bytes(NEW)
    way_out = f"sha256 is {sha(NEW)}, expected {sha(OLD)}. Delete the file .* checksums.lock"
    with pytest.raises(ValueError, match=way_out):
        fetch([url], folder)
    path.unlink()
    site.url("/log.csv", Answer(NEW))
    with pytest.raises(ValueError, match=rf"{sha(NEW)}, expected {sha(OLD)}; .*checksums.lock"):
        fetch([url], folder)
    (folder / "checksums.lock").unlink()
    assert fetch([url], folder).read_bytes() == NEW


def test_present_file_is_checked_against_a_known_hash_without_network(folder):
    folder.mkdir()
    path, url = folder / "log.csv", "http://127.0.0.1:9/log.csv"
    path.write_bytes(NEW)
    assert fetch([url], folder, sha256=sha(NEW)) == path
    with pytest.raises(ValueError, match=rf"{sha(NEW)}, expected {sha(OLD)}") as error:
        fetch([url], folder, sha256=sha(OLD))
    assert str(path) in str(error.value) and "data.sha256=null" in str(error.value)
    assert fetch([url], folder) == path, "by hand, without a record: taken as it is"
    assert names(folder) == {"log.csv"}


@pytest.mark.parametrize("url", ["ftp://host/log.csv", "file:///log.csv", "log.csv", "C:\\log.csv"])
def test_only_http_is_spoken(folder, url):
    with pytest.raises(ValueError, match="neither http nor https"):
        fetch(["https://host/log.csv", url], folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "urls",
    [[], ["http://host"], ["http://host/"], ["http://host/a/.."], ["http://host/..%5Clog.csv"]],
)
def test_first_url_must_end_in_a_file_name(folder, urls):
    with pytest.raises(ValueError, match="does not end in a file name"):
        fetch(urls, folder)


def test_encoded_slashes_do_not_leave_the_folder(site, folder):
    path = fetch([site.url("/..%2F..%2Flog.csv", Answer())], folder)
    assert path == folder / "log.csv"


def test_proxy_of_the_environment_is_used(site, folder, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", site.url("", Answer()))
    site.answers["http://data.invalid/log.csv"] = [Answer()]
    assert fetch(["http://data.invalid/log.csv"], folder).read_bytes() == OLD


def test_progress_is_a_bar_on_a_terminal_and_two_log_lines_elsewhere(
    site, folder, monkeypatch, caplog, capsys
):
    caplog.set_level(logging.INFO, "recblr")
    url = site.url("/log.csv", Answer())
    fetch([url], folder / "a", sha256=sha(OLD))
    assert [text.split()[0] for text in caplog.messages] == ["getting", "got"]
    assert capsys.readouterr() == ("", "")
    caplog.clear()
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("TERM", "xterm")
    fetch([url], folder / "b", sha256=sha(OLD))
    assert "log.csv" in capsys.readouterr().err and not caplog.messages


def test_sha256_of_a_file_longer_than_a_chunk(tmp_path):
    data = b"abc" * (download.CHUNK // 2)
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == sha(data)
