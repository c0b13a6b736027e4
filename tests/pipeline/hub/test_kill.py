"""A publication that is killed at any moment is continued by the next one, and readers see no mix of datasets."""

import os
import signal
import subprocess
import sys

import pytest

from lotlip_data.pipeline.hub import changes
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import NAME, SHARDS, assert_all_readable, assert_holds, change_captions
from tests.support.fake_dataset_hub import Answer, FakeDatasetHub, answer

CLIENT = """
import sys
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.hub import changes, publish, transfer

changes.FILES_PER_COMMIT, transfer.GROUP_FILES = 4, 2
sys.stdin.readline()
publish(Run.at(sys.argv[1]), sys.argv[2])
"""


def kill_at(hub: FakeDatasetHub, client: "subprocess.Popen[bytes]", kind: str, number: int, *, before: bool) -> None:
    """Kill the client when its request `number` of a kind arrives, or when that is done and not answered yet."""
    requests = 0

    def end() -> Answer | None:
        nonlocal requests
        requests += 1
        if requests < number:
            return None
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        return answer(0)

    if before:
        hub.faults[kind] = [end] * number
    else:
        hub.after[kind] = end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number", "before"),
    [("PUT object", 5, True), ("POST commit", 1, True), ("POST commit", 2, True), ("POST commit", 3, False)],
)
def test_a_killed_publication_is_continued_and_no_reader_ever_sees_a_mix(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, before: bool
) -> None:
    publish(fake.run, NAME)
    change_captions(fake, *range(SHARDS))
    hub.uploads.clear()
    client = subprocess.Popen([sys.executable, "-c", CLIENT, fake.run.url, NAME], stdin=subprocess.PIPE)
    kill_at(hub, client, kind, number, before=before)
    with client.stdin or pytest.fail("no pipe") as start:
        start.write(b"\n")
    assert client.wait(timeout=300) == -signal.SIGKILL
    hub.faults.clear()
    hub.after.clear()
    repository = hub.repositories[NAME]
    assert_all_readable(repository)

    monkeypatch.setattr(changes, "FILES_PER_COMMIT", 4)
    publish(fake.run, NAME)
    assert set(hub.uploads.values()) == {1}, "content that the Hub had was uploaded again"
    assert_holds(repository, fake.run)
    assert_all_readable(repository)
    assert not publish(fake.run, NAME).has_changes
