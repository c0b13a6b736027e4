"""Each name is looked up once at a time, answers are kept for a while, and every connection checks its address."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lotlip_data.pipeline.downloading import resolver
from lotlip_data.pipeline.downloading.connection import Connector
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.resolver import FAILED_SECONDS, KEPT_SECONDS, MAX_NAMES, Address, Resolver
from lotlip_data.pipeline.downloading.url_parsing import parse_url

PUBLIC: list[Address] = [(2, ("93.184.215.14", 0))]


class Names:
    """A name server and a clock under the control of a test."""

    def __init__(self) -> None:
        self.lookups: list[str] = []
        self.now = 100.0
        self.addresses: dict[str, list[Address]] = {}
        self.resolver = Resolver(self.look_up, lambda: self.now)

    def look_up(self, host: str) -> list[Address]:
        self.lookups.append(host)
        if host not in self.addresses:
            raise OSError("no such name")
        return self.addresses[host]


def test_an_answer_is_used_until_it_expires() -> None:
    names = Names()
    names.addresses = {"a.example": PUBLIC}
    for now in (100.0, 130.0, 99.0 + KEPT_SECONDS):
        names.now = now
        assert names.resolver.addresses("a.example", 1) == PUBLIC
    assert names.lookups == ["a.example"]
    names.now = 100.0 + KEPT_SECONDS
    names.addresses = {"a.example": [(2, ("192.0.2.1", 0))]}
    assert names.resolver.addresses("a.example", 1) == [(2, ("192.0.2.1", 0))]


def test_a_name_that_does_not_resolve_is_looked_up_again_soon() -> None:
    names = Names()
    for now in (100.0, 99.0 + FAILED_SECONDS):
        names.now = now
        with pytest.raises(OSError, match="no such name"):
            names.resolver.addresses("gone.example", 1)
    assert names.lookups == ["gone.example"]
    names.now, names.addresses = 100.0 + FAILED_SECONDS, {"gone.example": PUBLIC}
    assert names.resolver.addresses("gone.example", 1) == PUBLIC


def test_a_host_that_cannot_be_reached_is_looked_up_again() -> None:
    names = Names()
    names.addresses = {"a.example": PUBLIC}
    names.resolver.addresses("a.example", 1)
    names.resolver.forget("a.example")
    names.resolver.forget("never.example")
    names.resolver.addresses("a.example", 1)
    assert names.lookups == ["a.example"] * 2


def test_threads_share_one_lookup_of_a_name_and_different_names_are_looked_up_at_once() -> None:
    hosts, lookups, lock = ["a.example", "b.example", "c.example"], list[str](), threading.Lock()
    all_looking = threading.Barrier(len(hosts), timeout=60)

    def look_up(host: str) -> list[Address]:
        with lock:
            lookups.append(host)
        all_looking.wait()  # no lookup ends before all have begun
        return PUBLIC

    shared = Resolver(look_up)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda host: shared.addresses(host, 60), hosts * 4))
    assert answers == [PUBLIC] * 12
    assert sorted(lookups) == hosts


def test_a_thread_does_not_wait_for_a_name_server_beyond_its_time() -> None:
    answer, looking = threading.Event(), threading.Event()

    def look_up(host: str) -> list[Address]:
        looking.set()
        answer.wait(60)
        return PUBLIC

    shared = Resolver(look_up)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.addresses, "slow.example", 60)
        looking.wait(60)
        with pytest.raises(TimeoutError):
            shared.addresses("slow.example", 0)
        shared.forget("slow.example")  # its lookup goes on
        answer.set()
        assert first.result() == shared.addresses("slow.example", 60) == PUBLIC


def test_the_cache_is_bounded_and_keeps_the_names_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NAMES <= 100_000
    monkeypatch.setattr(resolver, "MAX_NAMES", 3)
    names = Names()
    names.addresses = dict.fromkeys("abcd", PUBLIC)
    for host in ("a", "b", "c", "a", "d", "a", "b"):
        names.resolver.addresses(host, 1)
    assert names.lookups == ["a", "b", "c", "d", "b"]


def test_an_address_in_the_cache_is_checked_at_each_connection() -> None:
    """Also if a connector that allows the host has put it there."""
    names = Names()
    names.addresses = {"intra.example": [(2, ("127.0.0.1", 0))]}
    target = parse_url("http://intra.example:1/x.jpg")
    with pytest.raises(OSError):  # nothing listens at port 1
        Connector(["intra.example"], 5, names.resolver).connect(target, float("inf"))
    names.resolver.addresses("intra.example", 1)
    with pytest.raises(FetchError, match="address not allowed"):
        Connector([], 5, names.resolver).connect(target, float("inf"))
    assert names.lookups == ["intra.example"] * 2  # once more because it could not be reached
