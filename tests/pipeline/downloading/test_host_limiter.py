"""What a host may cost: a few threads at a time, and little time where it is dead, slow or asks for patience."""

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


def opener(**settings: object) -> GuardedOpener:
    defaults = {"allow_hosts": ("127.0.0.1",), "timeout": 60, "total_timeout": 120, "retries": 0}
    return GuardedOpener(DownloadSettings.model_validate(defaults | settings))


def reasons_of(guard: GuardedOpener, urls: list[str], threads: int = 16) -> list[str]:
    """`ok` or the reason of each, fetched by so many threads."""

    def one(url: str) -> str:
        try:
            guard.open(urllib.request.Request(url))
        except FetchError as refusal:
            return refusal.reason
        return "ok"

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, urls))


def test_no_more_fetches_of_a_host_are_under_way_than_it_has_places(server: RawServer) -> None:
    now, most, lock, three = 0, 0, threading.Lock(), threading.Barrier(3, timeout=60)

    def answer(client: socket.socket) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait()  # none is answered before all places are taken
        time.sleep(0.02)
        with lock:  # before the answer: the client's next request may be here before this thread goes on
            now -= 1
        client.sendall(ok(b"x"))

    server.answers["/x"] = answer
    assert reasons_of(opener(per_host=3), [server.url + "/x"] * 30) == ["ok"] * 30
    assert most == 3


def test_a_silent_host_is_given_up_and_others_are_not(server: RawServer) -> None:
    """Forty rows of it would take 40 seconds at four places; it costs the time of a few, and other hosts none."""
    other = RawServer()
    good = other.says("/x", ok(b"x"))
    server.answers["/silent"] = lambda client: time.sleep(120)
    urls = [url for _ in range(40) for url in (server.url + "/silent", good)]
    started = time.monotonic()
    found = reasons_of(opener(per_host=4, host_failures=4, timeout=4.0), urls)
    assert time.monotonic() - started < 30
    assert found[1::2] == ["ok"] * 40
    assert set(found[::2]) == {"timeout", "host is down"}
    assert found.count("host is down") >= 40 - 4 - 4  # in a row, and under way when it was given up
    assert len(server.requests) <= 8
    other.close()


def test_hosts_that_refuse_and_names_that_nobody_knows_are_given_up_too(server: RawServer) -> None:
    server.close()
    guard = opener(host_failures=4)
    assert reasons_of(guard, [server.url + "/x"] * 6, 1) == ["connection refused"] * 4 + ["host is down"] * 2
    assert reasons_of(guard, ["http://nowhere.invalid/x"] * 6, 1) == ["name not resolved"] * 4 + ["host is down"] * 2


def test_any_answer_shows_that_a_host_lives(server: RawServer) -> None:
    """Failures count in a row only: a host that answers now and then, be it with a 404, is not given up."""
    server.says("/cut", b"")
    server.says("/dead", b"HTTP/1.1 404 Not Found\r\n\r\n")
    server.says("/on", redirect("/dead"))
    urls = [server.url + path for path in ("/cut", "/cut", "/dead", "/cut", "/cut", "/on", "/cut", "/cut", "/dead")]
    assert "host is down" not in reasons_of(opener(host_failures=3), urls, 1)


def test_a_redirect_to_a_dead_host_is_held_against_that_host_only(server: RawServer) -> None:
    dead = RawServer()
    dead.close()
    server.says("/x", ok(b"x"))
    url = server.says("/moved", redirect(dead.url + "/x"))
    found = reasons_of(opener(host_failures=2), [url] * 4 + [server.url + "/x"], 1)
    assert found == ["connection refused"] * 2 + ["host is down"] * 2 + ["ok"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_host_gets_the_pause_that_it_asks_for(server: RawServer, status: int) -> None:
    times: list[float] = []

    def answer(client: socket.socket) -> None:
        times.append(time.monotonic())
        busy = f"HTTP/1.1 {status} Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".encode()
        client.sendall(busy if len(times) == 1 else ok(b"x"))

    server.answers["/x"] = answer
    assert reasons_of(opener(retries=1), [server.url + "/x"], 1) == ["ok"]
    assert times[1] - times[0] > 0.95


def test_other_fetches_wait_for_the_hosts_pause_as_well(server: RawServer) -> None:
    server.says("/busy", b"HTTP/1.1 429 Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
    server.says("/x", ok(b"x"))
    started = time.monotonic()
    assert reasons_of(opener(), [server.url + "/busy", server.url + "/x"], 1) == ["http 429", "ok"]
    assert time.monotonic() - started > 0.95


@pytest.mark.parametrize("wait", ["3600", "99999999999999999999", "date"], ids=["seconds", "huge", "date"])
def test_a_pause_that_is_too_long_is_not_waited_for(server: RawServer, wait: str) -> None:
    if wait == "date":
        wait = email.utils.formatdate(time.time() + 3600, usegmt=True)
    says = f"HTTP/1.1 503 Wait\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
    server.says("/other", ok(b"x"))
    started = time.monotonic()
    urls = [server.says("/x", says.encode()), server.url + "/other"]
    assert reasons_of(opener(retries=3), urls, 1) == ["http 503", "ok"]
    assert time.monotonic() - started < 60
    assert len(server.requests) == 2


@pytest.mark.parametrize("wait", ["soon", "-1", "", "Wed, 99 Foo", "²"])
def test_a_pause_that_nobody_understands_is_none(server: RawServer, wait: str) -> None:
    says = f"HTTP/1.1 503 Wait\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
    assert reasons_of(opener(), [server.says("/x", says.encode("latin-1"))], 1) == ["http 503"]


def test_waiting_for_a_place_ends(server: RawServer) -> None:
    """A slow host that answers in the end is never given up, but what waits for it gives up by itself."""
    server.drips("/slow", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x", 0.05)
    started = time.monotonic()
    guard = opener(per_host=1, timeout=0.2, total_timeout=0.6)
    found = reasons_of(guard, [server.url + "/slow"] * 40, 40)
    assert time.monotonic() - started < 12  # one after another they would take 24
    assert set(found) == {"timeout", "host is busy"}
