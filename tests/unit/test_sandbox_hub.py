"""The hub over real HTTP on 127.0.0.1: downloads that resume, faults, git by commit."""

import subprocess
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests
from urllib3.exceptions import ProtocolError

from sandbox.servers.hub import Fault, Hub, parse_range, read_cgi_headers

CONTENT = bytes(range(256)) * 1024


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model = tmp_path / "model.gguf"
    model.write_bytes(CONTENT)
    with Hub(files={"model.gguf": model}, bind="127.0.0.1", host="127.0.0.1") as hub:
        yield hub


def download(hub: Hub, **headers: str) -> requests.Response:
    return requests.get(hub.file_url("model.gguf"), headers=headers, timeout=10)


def test_download_follows_one_redirect(hub: Hub) -> None:
    answer = download(hub)
    assert [step.status_code for step in answer.history] == [302]
    assert answer.content == CONTENT
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_head_has_the_length_and_no_body(hub: Hub) -> None:
    answer = requests.head(hub.file_url("model.gguf"), allow_redirects=True, timeout=10)
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.content == b""


def test_range_gives_the_rest_and_is_recorded(hub: Hub) -> None:
    answer = download(hub, Range="bytes=1000-")
    assert (answer.status_code, answer.content) == (206, CONTENT[1000:])
    assert answer.headers["Content-Range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
    assert [(request.range, request.status) for request in hub.requests_for("model.gguf")] == [("bytes=1000-", 206)]


def test_range_past_the_end_is_refused(hub: Hub) -> None:
    answer = download(hub, Range=f"bytes={len(CONTENT)}-")
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_if_range_of_another_version_gives_the_whole_file(hub: Hub) -> None:
    etag = download(hub).headers["ETag"]
    assert download(hub, **{"Range": "bytes=5-", "If-Range": etag}).status_code == 206
    assert download(hub, **{"Range": "bytes=5-", "If-Range": '"older"'}).content == CONTENT


def test_cut_happens_as_often_as_asked(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(cut_after_bytes=70_000, times=1))
    with requests.get(hub.file_url("model.gguf"), stream=True, timeout=10) as answer:
        assert answer.headers["Content-Length"] == str(len(CONTENT))
        received = answer.raw.read(70_000)
        with pytest.raises(ProtocolError):
            answer.raw.read(1)
    assert received == CONTENT[:70_000]
    assert download(hub).content == CONTENT


def test_stall_pauses_and_then_goes_on(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(stall_after_bytes=100, stall_seconds=0.3))
    begin = time.monotonic()
    assert download(hub).content == CONTENT
    assert time.monotonic() - begin >= 0.3


def test_stopping_ends_a_stall(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(CONTENT)
    hub = Hub(files={"model.gguf": model}, bind="127.0.0.1", host="127.0.0.1").start()
    hub.set_fault("model.gguf", Fault(stall_after_bytes=100, stall_seconds=3600))
    with requests.get(hub.file_url("model.gguf"), stream=True, timeout=10):
        begin = time.monotonic()
        hub.stop()
        assert time.monotonic() - begin < 5


def test_first_requests_fail(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(status=HTTPStatus.INTERNAL_SERVER_ERROR, times=2))
    assert [download(hub).status_code for _ in range(3)] == [500, 500, 200]


def test_range_is_ignored(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(ignore_range=True))
    answer = download(hub, Range="bytes=1000-")
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_wrong_content_has_the_right_length(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(wrong_content=True))
    content = download(hub).content
    assert len(content) == len(CONTENT)
    assert content != CONTENT


def test_clear_forgets_faults_and_requests(hub: Hub) -> None:
    hub.set_fault("model.gguf", Fault(wrong_content=True))
    download(hub)
    hub.clear()
    assert hub.requests == []
    assert download(hub).content == CONTENT


def test_unknown_paths_are_not_found(hub: Hub) -> None:
    for path in ("/", "/cdn/other", "/resolve/../../etc/passwd", "/git/llama.cpp/info/refs"):
        assert requests.get(f"{hub.url}{path}", timeout=10).status_code == 404


def test_git_fetches_one_commit_by_hash(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path / "source")]
    (tmp_path / "source").mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    commits = []
    for message in ("one", "two"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
        shown = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        commits.append(shown.stdout.strip())
    subprocess.run([*git, "config", "uploadpack.allowReachableSHA1InWant", "true"], check=True)

    clone = ["git", "-C", str(tmp_path / "clone")]
    (tmp_path / "clone").mkdir()
    subprocess.run([*clone, "init", "-q"], check=True)
    with Hub(tmp_path / "source" / ".git", bind="127.0.0.1", host="127.0.0.1") as hub:
        subprocess.run([*clone, "fetch", "-q", "--depth", "1", hub.git_url, commits[0]], check=True)
        fetched = subprocess.run([*clone, "rev-parse", "FETCH_HEAD"], check=True, capture_output=True, text=True)
        unknown = subprocess.run([*clone, "fetch", "-q", hub.git_url, "1" * 40], check=False, capture_output=True)
    assert fetched.stdout.strip() == commits[0]
    assert unknown.returncode != 0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 100)),
        ("bytes=10-", (10, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-200", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=-", (0, 100)),
        ("bytes=1-2,5-6", (0, 100)),
        ("lines=1-2", (0, 100)),
    ],
)
def test_parse_range(header: str | None, expected: tuple[int, int]) -> None:
    assert parse_range(header, 100) == expected


def test_read_cgi_headers_stops_at_the_empty_line() -> None:
    lines = iter([b"Status: 404 Not Found\r\n", b"Content-Type: text/plain\r\n", b"\r\n", b"body: no header\r\n"])
    assert read_cgi_headers(lambda: next(lines)) == {"Status": "404 Not Found", "Content-Type": "text/plain"}
