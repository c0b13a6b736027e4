"""A host takes a few threads at a time, and little time if it is dead, slow or asks clients to wait."""

import email.utils
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import http_client
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.host_limiter import HostLimiter, Slot
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


class Host:
    """A host whose answers a test decides, seen through its limiter. Nothing waits."""

    def __init__(self, start: int = 8, most: int = 64, failures: int = 16) -> None:
        self.now = 0.0
        self.limiter = HostLimiter(start, most, failures, lambda: self.now)

    @contextmanager
    def in_flight(self, count: int | None = None) -> Iterator[list[Slot]]:
        """As many requests as the limit allows, and at most `count`."""
        with ExitStack() as stack:
            slots = list[Slot]()
            while count is None or len(slots) < count:
                try:
                    slots.append(stack.enter_context(self.limiter.slot("host", max_wait=0)))
                except FetchError as error:
                    if error.reason != "host is busy":
                        raise
                    break
            yield slots

    def limit(self) -> int:
        with self.in_flight() as slots:
            return len(slots)

    def answer(self, rounds: int = 1) -> None:
        """All requests that the limit allows are answered."""
        for _ in range(rounds):
            with self.in_flight() as slots:
                for slot in slots:
                    self.limiter.record_answer(slot)

    def fail(self, slots: list[Slot], reason: str, retry_after: float | None = None) -> None:
        for slot in slots:
            self.limiter.record_failure(slot, FetchError(reason, retry_after=retry_after), 60)


def test_the_limit_of_a_host_that_answers_grows_to_its_bound() -> None:
    """A list of one large host is not throttled to the start: it takes three round trips to 64 requests."""
    host, limits = Host(), list[int]()
    for _ in range(5):
        limits.append(host.limit())
        host.answer()
    assert limits == [8, 16, 32, 64, 64]


def test_the_limit_does_not_grow_beyond_what_is_used() -> None:
    host = Host()
    for _ in range(100):
        with host.in_flight(3) as slots:
            host.limiter.record_answer(slots[0])
    assert host.limit() == 8


@pytest.mark.parametrize(("reason", "factor"), [("http 429", 0.5), ("http 503", 0.5), ("timeout", 0.75)])
def test_the_limit_shrinks_once_for_the_requests_in_flight_and_grows_slowly_then(reason: str, factor: float) -> None:
    host = Host()
    host.answer(3)
    with host.in_flight() as slots:
        host.limiter.record_answer(slots[0])
        host.fail(slots[1:20], reason)
        for slot in slots[20:]:
            host.limiter.record_answer(slot)  # of before the shrink: they tell nothing new
    assert host.limit() == 64 * factor
    host.answer(rounds=2)
    assert 1 <= host.limit() - 64 * factor <= 2


def test_the_limit_shrinks_to_one_and_recovers() -> None:
    host = Host(failures=1000)
    host.answer()
    for _ in range(20):
        with host.in_flight() as slots:
            host.fail(slots, "http 503")
    assert host.limit() == 1
    host.answer(40)
    assert host.limit() > 8


def test_a_host_that_never_answers_is_given_up_at_the_start_limit() -> None:
    """Shrinking its limit would only let more threads wait for it, one after another."""
    host = Host(failures=16)
    with host.in_flight() as slots:
        host.fail(slots, "timeout")
    assert host.limit() == 8
    with host.in_flight() as slots:
        assert all(slot.is_hopeless(FetchError("timeout")) for slot in slots)
        host.fail(slots, "timeout")
    with pytest.raises(FetchError, match="host is down: 16 consecutive failures, the last one: timeout"):
        host.limit()


def test_requests_that_only_growth_has_sent_do_not_give_the_host_up() -> None:
    """64 refusals at once say that 64 are too many, not that the host is down."""
    host = Host(failures=16)
    host.answer(3)
    with host.in_flight() as slots:
        assert [slot.is_refused(FetchError("http 429")) for slot in slots] == [False] * 8 + [True] * 56
        assert not any(slot.is_refused(FetchError("http 404")) for slot in slots)
        host.fail(slots, "http 429")
    with host.in_flight() as slots:
        assert len(slots) == 32
        host.fail(slots[:8], "http 429")
    with pytest.raises(FetchError, match="host is down"):
        host.limit()


def test_failures_of_single_images_change_no_limit() -> None:
    host = Host()
    for reason in ("http 404", "http 500", "too large", "malformed response"):
        with host.in_flight() as slots:
            host.fail(slots, reason)
    assert host.limit() == 8


def test_hosts_have_limits_of_their_own() -> None:
    host = Host()
    host.answer(3)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(host.limiter.slot("other", 0))
        with pytest.raises(FetchError, match="host is busy"):
            stack.enter_context(host.limiter.slot("other", 0))
    assert host.limit() == 64


def test_a_pause_ends_by_the_clock() -> None:
    host = Host()
    with host.in_flight(1) as slots:
        host.fail(slots, "http 429", retry_after=30)
    host.now = 29.0
    assert host.limit() == 0
    host.now = 30.0
    assert host.limit() == 4


def test_an_image_that_is_refused_because_of_the_growth_costs_no_retry(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two requests at once that are refused, one was sent because of the growth: it is sent again."""
    monkeypatch.setattr(http_client, "BACKOFF_SECONDS", 0.01)
    both = threading.Barrier(2, timeout=60)

    def answer(client: socket.socket) -> None:
        is_refused = len(server.requests) in (2, 3)
        if is_refused:
            both.wait()
        client.sendall(b"HTTP/1.1 429 Too many\r\nContent-Length: 0\r\n\r\n" if is_refused else ok(b"x"))

    server.answers["/x"] = answer
    opener = make_opener(per_host=1, max_per_host=8)
    assert reasons_of(opener, [server.url + "/x"], 1) == ["ok"]
    assert sorted(reasons_of(opener, [server.url + "/x"] * 2, 2)) == ["http 429", "ok"]
    assert len(server.requests) == 4


def test_a_timeout_of_a_host_that_has_never_answered_is_not_tried_again(server: RawServer) -> None:
    answered = threading.Event()
    server.answers["/silent"] = lambda client: answered.wait(60)
    assert reasons_of(make_opener(timeout=0.2, retries=2), [server.url + "/silent"], 1) == ["timeout"]
    assert len(server.requests) <= 1
    answered.set()


def test_per_host_alone_stays_the_largest_number() -> None:
    """In manifests of before `max_per_host`. Runs have all defaults in their manifest, which says nothing."""
    numbers = [
        (settings.per_host, settings.max_per_host)
        for settings in map(
            DownloadSettings.parse,
            ({}, {"per_host": 8}, {"per_host": 2}, {"per_host": 100}, {"per_host": 2, "max_per_host": 5}),
        )
    ]
    assert numbers == [(8, 64), (8, 64), (2, 2), (100, 100), (2, 5)]
