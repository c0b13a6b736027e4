"""A host takes a few threads at a time, and little time if it is dead, slow or asks clients to wait."""

import email.utils
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.http_client import GuardedOpener
from tests.pipeline.downloading.raw_server import RawServer, ok, redirect


@pytest.fixture
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def make_opener(**settings: object) -> GuardedOpener:
    defaults = {"allow_hosts": ("127.0.0.1",), "timeout": 60, "total_timeout": 120, "retries": 0}
    return GuardedOpener(DownloadSettings.model_validate(defaults | settings))


def reasons_of(opener: GuardedOpener, urls: list[str], threads: int = 16) -> list[str]:
    """`ok` or the failure reason of each URL, fetched by `threads` threads."""

    def reason_of(url: str) -> str:
        try:
            opener.open(urllib.request.Request(url))
        except FetchError as refusal:
            return refusal.reason
        return "ok"

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(reason_of, urls))


def test_a_host_has_at_most_per_host_parallel_requests(server: RawServer) -> None:
    running, most, lock, all_running = 0, 0, threading.Lock(), threading.Barrier(3, timeout=60)

    def answer(client: socket.socket) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_running.wait()  # no request is answered before the limit is reached
        time.sleep(0.02)
        with lock:  # before the answer: the client's next request can arrive before this thread continues
            running -= 1
        client.sendall(ok(b"x"))

    server.answers["/x"] = answer
    assert reasons_of(make_opener(per_host=3), [server.url + "/x"] * 30) == ["ok"] * 30
    assert most == 3


@pytest.mark.slow
def test_a_silent_host_is_given_up_and_other_hosts_are_not(server: RawServer) -> None:
    """Forty requests, four at a time, would take 40 seconds. Only a few are made, and the other host is unaffected."""
    other = RawServer()
    good = other.serve("/x", ok(b"x"))
    server.answers["/silent"] = lambda client: time.sleep(120)
    urls = [url for _ in range(40) for url in (server.url + "/silent", good)]
    started = time.monotonic()
    reasons = reasons_of(make_opener(per_host=4, host_failures=4, timeout=4.0), urls)
    assert time.monotonic() - started < 30
    assert reasons[1::2] == ["ok"] * 40
    assert set(reasons[::2]) == {"timeout", "host is down"}
    assert reasons.count("host is down") >= 40 - 4 - 4  # 4 in a row, and 4 running when the host was given up
    assert len(server.requests) <= 8
    other.close()


def test_hosts_that_refuse_connections_and_unknown_names_are_given_up_too(server: RawServer) -> None:
    server.close()
    opener = make_opener(host_failures=4)
    assert reasons_of(opener, [server.url + "/x"] * 6, 1) == ["connection refused"] * 4 + ["host is down"] * 2
    assert reasons_of(opener, ["http://nowhere.invalid/x"] * 6, 1) == ["name not resolved"] * 4 + ["host is down"] * 2


def test_any_http_answer_resets_the_failures_of_a_host(server: RawServer) -> None:
    """Only consecutive failures count: a host that answers at times, even with 404, is not given up."""
    server.serve("/cut", b"")
    server.serve("/dead", b"HTTP/1.1 404 Not Found\r\n\r\n")
    server.serve("/on", redirect("/dead"))
    urls = [server.url + path for path in ("/cut", "/cut", "/dead", "/cut", "/cut", "/on", "/cut", "/cut", "/dead")]
    assert "host is down" not in reasons_of(make_opener(host_failures=3), urls, 1)


def test_a_redirect_to_a_dead_host_counts_for_that_host_only(server: RawServer) -> None:
    dead = RawServer()
    dead.close()
    server.serve("/x", ok(b"x"))
    url = server.serve("/moved", redirect(dead.url + "/x"))
    reasons = reasons_of(make_opener(host_failures=2), [url] * 4 + [server.url + "/x"], 1)
    assert reasons == ["connection refused"] * 2 + ["host is down"] * 2 + ["ok"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_waits_for_the_pause_that_the_host_asks_for(server: RawServer, status: int) -> None:
    times: list[float] = []

    def answer(client: socket.socket) -> None:
        times.append(time.monotonic())
        busy = f"HTTP/1.1 {status} Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".encode()
        client.sendall(busy if len(times) == 1 else ok(b"x"))

    server.answers["/x"] = answer
    assert reasons_of(make_opener(retries=1), [server.url + "/x"], 1) == ["ok"]
    assert times[1] - times[0] > 0.95


def test_other_requests_wait_for_the_pause_of_the_host_too(server: RawServer) -> None:
    server.serve("/busy", b"HTTP/1.1 429 Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
    server.serve("/x", ok(b"x"))
    started = time.monotonic()
    assert reasons_of(make_opener(), [server.url + "/busy", server.url + "/x"], 1) == ["http 429", "ok"]
    assert time.monotonic() - started > 0.95


@pytest.mark.parametrize("wait", ["3600", "99999999999999999999", "date"], ids=["seconds", "huge", "date"])
def test_a_pause_that_is_too_long_fails_the_request_at_once(server: RawServer, wait: str) -> None:
    if wait == "date":
        wait = email.utils.formatdate(time.time() + 3600, usegmt=True)
    response = f"HTTP/1.1 503 Wait\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
    server.serve("/other", ok(b"x"))
    started = time.monotonic()
    urls = [server.serve("/x", response.encode()), server.url + "/other"]
    assert reasons_of(make_opener(retries=3), urls, 1) == ["http 503", "ok"]
    assert time.monotonic() - started < 60
    assert len(server.requests) == 2


@pytest.mark.parametrize("wait", ["soon", "-1", "", "Wed, 99 Foo", "²"])
def test_a_malformed_retry_after_is_ignored(server: RawServer, wait: str) -> None:
    response = f"HTTP/1.1 503 Wait\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
    assert reasons_of(make_opener(), [server.serve("/x", response.encode("latin-1"))], 1) == ["http 503"]


def test_waiting_for_a_busy_host_times_out(server: RawServer) -> None:
    """A slow host that answers in the end is never given up, but requests that wait for it time out."""
    server.drip("/slow", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x", 0.05)
    started = time.monotonic()
    opener = make_opener(per_host=1, timeout=0.2, total_timeout=0.6)
    reasons = reasons_of(opener, [server.url + "/slow"] * 40, 40)
    assert time.monotonic() - started < 12  # one after another they would take 24 seconds
    assert set(reasons) == {"timeout", "host is busy"}
