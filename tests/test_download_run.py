"""`train.py data=gowalla` from a server, with a generated file in Gowalla's format."""

import gzip
import hashlib
import http.server
import json
import random
import threading

import pytest
from command_line import invoke, run_folders

NAME = "loc-gowalla_totalCheckins.txt.gz"


def check_ins(users: int = 40, places: int = 30) -> bytes:
    """Newest first per user, as the real file; every place has many visitors."""
    draw = random.Random(0)
    lines = []
    for user in range(users):
        for day in range(28, 28 - draw.randint(10, 20), -1):
            place = 22847 + draw.randrange(places)
            lines.append(f"{user}\t2010-09-{day:02}T12:00:00Z\t30.2\t-97.8\t{place}\n")
    return gzip.compress("".join(lines).encode())


@pytest.fixture
def server(tmp_path):
    """(base URL, list of requests, bytes of the file)"""
    content, requests = check_ins(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if self.path != f"/{NAME}":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", requests, content
        serving.shutdown()


def test_gowalla_is_downloaded_verified_trained_and_not_downloaded_again(server, tmp_path):
    base, requests, content = server
    arguments = ["data=gowalla", "model=recblr", "trainer=smoke", "logger=csv"]
    arguments.append(f"data.urls=[{base}/gone/{NAME},{base}/{NAME}]")
    arguments.append(f"data.sha256={hashlib.sha256(content).hexdigest()}")
    outcome = invoke("train", *arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert requests == [f"/gone/{NAME}", f"/{NAME}"]
    assert (tmp_path / "data" / NAME).read_bytes() == content
    assert "cite Cho et al. 2011" in outcome.out
    (folder,) = run_folders(tmp_path / "runs")
    metrics = json.loads((folder / "test_metrics.json").read_text())
    assert metrics["users"] == 40

    again = invoke("train", *arguments, "overwrite=true", cwd=tmp_path)
    assert again.code == 0 and len(requests) == 2
    assert "prepared before" in again.out and "Cho et al." not in again.out
    assert json.loads((folder / "test_metrics.json").read_text()) == metrics

    closed = f"data.urls=[http://127.0.0.1:9/{NAME}]"
    offline = invoke("train", *arguments, closed, "paths.data=../data", cwd=tmp_path / "runs")
    assert offline.code == 0 and len(requests) == 2


def test_wrong_checksum_stops_before_anything_is_read(server, tmp_path):
    base, _, content = server
    arguments = ["data=gowalla", f"data.urls=[{base}/{NAME}]", "logger=csv"]  # the catalog's hash
    outcome = invoke("train", *arguments, cwd=tmp_path)
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1
    assert "sha256" in outcome.err and hashlib.sha256(content).hexdigest() in outcome.err
    assert "c1c3e19effba649b6c89aeab3c1f9459fad88cfdc2b460fc70fd54e295d83ea0" in outcome.err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data" / NAME).exists()
