"""A web server that refuses, fails or does not answer is named as such, and only 404 and 410 mean a missing file."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from lotlip_data.manifests import storage, storage_http
from lotlip_data.manifests.storage_retry import StorageError
from tests.support.web_server import serving

ROWS = b"url,caption\n" + b"".join(b"http://a.example/%d,%s\n" % (index, b"x" * 200) for index in range(60_000))


_REDIRECTS = {"/circle": "/circle", "/elsewhere": "file:///etc/passwd"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers `/status/NNN` with that status, and other paths with `ROWS`. It knows no ranges."""

    requests = 0

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        type(self).requests += 1
        if self.path == "/garbage":
            self.wfile.write(b"\x00\x01 garbage\r\n\r\n")
            self.close_connection = True
            return
        if self.path in _REDIRECTS:
            self.send_response(302)
            self.send_header("Location", _REDIRECTS[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/silent":
            threading.Event().wait(1)
            return
        status = int(self.path.split("/")[2]) if self.path.startswith("/status/") else 200
        body = ROWS if status == 200 else b""
        self.send_response(status)
        if self.path != "/without-size":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            try:
                self.wfile.write(body)
            except OSError:  # the client has read enough
                self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    Handler.requests = 0
    with serving(Handler) as url:
        yield url


@pytest.mark.parametrize("status", [404, 410])
def test_only_the_servers_word_means_that_a_file_is_missing(server: str, status: int) -> None:
    url = f"{server}/status/{status}/l.csv"
    assert not storage.exists(url)
    assert storage.size(url) is None


@pytest.mark.parametrize(("status", "phrase"), [(401, "Unauthorized"), (403, "Forbidden"), (418, "I'm a Teapot")])
def test_a_refusal_is_final_and_told(server: str, status: int, phrase: str) -> None:
    url = f"{server}/status/{status}/l.csv"
    for operation in (storage.exists, storage.size, storage.kind):
        with pytest.raises(StorageError, match=rf"/l\.csv: the server answers {status} {phrase}\. Check the URL"):
            operation(url)
    assert Handler.requests == 6


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/circle", "the server redirects too often"),
        ("/elsewhere", "the server redirects to a URL that is not http or https: file:///etc/passwd"),
        ("/garbage", "the answer of the server is not valid HTTP: .*garbage"),
    ],
)
def test_an_answer_that_leads_nowhere_is_final_and_told_in_one_line(server: str, path: str, message: str) -> None:
    with pytest.raises(StorageError, match=f"{path}: {message}") as error:
        storage.kind(server + path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_of_the_server_is_tried_again_and_told(server: str, status: int) -> None:
    with pytest.raises(ConnectionError, match=f"the server answers {status}"):
        storage.exists(f"{server}/status/{status}/l.csv")
    assert Handler.requests == 8


def test_a_server_that_is_down_is_not_a_missing_file(server: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    for name in ("l.csv", "*.csv"):
        operation = storage.list_matching if "*" in name else storage.exists
        with pytest.raises(OSError, match="Cannot connect to host"):
            operation(f"http://127.0.0.1:{port}/{name}")


def test_a_server_that_does_not_answer_ends_the_wait(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_http, "READ_SECONDS", 0.2)
    storage_http.file_system_options.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"/silent: the server does not answer within 0\.2 seconds"):
            storage.exists(f"{server}/silent")
    finally:
        storage_http.file_system_options.cache_clear()


@pytest.mark.parametrize("name", ["with-size.csv", "without-size"])
def test_a_server_that_sends_only_whole_files_is_read_from_the_beginning(server: str, name: str) -> None:
    with storage.open_read(f"{server}/{name}") as stream:
        content = b"".join(iter(lambda: stream.read(1 << 20), b""))
    assert content == ROWS
