"""A stage gets everything that the stages before it commit, and ends when they have ended."""

import logging

import pytest

from lotlip_data.pipeline.core import upstream as upstream_module
from lotlip_data.pipeline.core.upstream import Upstream


class Download:
    """A stage that commits a shard whenever somebody looks, and ends after the last one."""

    def __init__(self, shards: int) -> None:
        self.shards, self.committed = shards, 0

    def missing(self) -> str:
        """The last shard is committed right after this answer, as it can be with another process."""
        left = self.shards - self.committed
        self.committed = min(self.shards, self.committed + 1)
        return f"{left} shards" if left else ""

    def list(self) -> list[int]:
        return list(range(self.committed))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(upstream_module, "LISTING_SHARE", 0)


@pytest.mark.parametrize("shards", [0, 1, 5])
def test_the_last_listing_has_all_that_was_committed_before_the_end(shards: int) -> None:
    download = Download(shards)
    upstream = Upstream(download.missing)
    listings = []
    while not upstream.ended:
        assert upstream.is_due()
        listings.append(upstream.look(download.list))
    assert listings[-1] == list(range(shards)) and not upstream.is_due()


def test_a_wait_ends_with_its_condition_or_with_the_stages_before() -> None:
    download = Download(5)
    upstream = Upstream(download.missing)
    upstream.wait(lambda: download.committed >= 2)
    assert download.committed == 2 and not upstream.ended
    upstream.wait()
    assert upstream.ended and download.committed == 5


def test_a_listing_that_takes_long_is_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def take_three_seconds() -> None:
        nonlocal now
        now += 3.0

    monkeypatch.setattr(upstream_module, "LISTING_SHARE", 20)
    monkeypatch.setattr(upstream_module.time, "monotonic", lambda: now)
    upstream = Upstream(lambda: "a shard")
    upstream.look(take_three_seconds)
    now += 59.0
    assert not upstream.is_due()
    now += 2.0
    assert upstream.is_due()


def test_what_is_waited_for_is_said_once_and_again_when_nothing_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = "3 of 12 shards to be downloaded"
    upstream = Upstream(lambda: missing, "recaption")

    def look_at(seconds: float) -> None:
        monkeypatch.setattr(upstream_module.time, "monotonic", lambda: seconds)
        upstream.look(list)

    with caplog.at_level(logging.INFO):
        for seconds in (0.0, 100.0, 500.0):
            look_at(seconds)
        missing = "2 of 12 shards to be downloaded"  # one has come
        for seconds in (550.0, 1100.0, 1160.0, 1170.0):
            look_at(seconds)
    assert caplog.messages == [
        "recaption: waits for 3 of 12 shards to be downloaded",
        "recaption: still waits for 2 of 12 shards to be downloaded; nothing has come for 10 minutes. Ctrl-C stops the "
        "wait; what is committed is kept",
    ]
