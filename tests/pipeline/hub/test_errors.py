"""What goes wrong with the Hub is one line with the remedy, and no line has the token."""

import logging

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.hub.errors import Unavailable, readable
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline.hub.conftest import NAME
from tests.support.fake_dataset_hub import TOKEN, FakeDatasetHub, answer


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would be waited."""
    seconds = list[float]()
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def test_a_missing_token_is_named_before_the_hub_is_asked(
    hub: FakeDatasetHub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token.*Run `hf auth login`, or: Set HF_TOKEN"):
        publish(run, NAME)
    assert hub.requests == []


def test_a_token_that_cannot_be_sent_is_one_line_without_it(
    hub: FakeDatasetHub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_…")  # copied from a guide
    with pytest.raises(UserError, match=r"characters that no token has\. Set HF_TOKEN") as refusal:
        publish(run, NAME)
    assert "hf_…" not in str(refusal.value)
    assert hub.requests == []


def test_a_token_that_may_only_read_is_named(hub: FakeDatasetHub, run: Run) -> None:
    hub.role = "read"
    with pytest.raises(UserError, match=r"may only read.*write access"):
        publish(run, NAME)


@pytest.mark.parametrize("name", ["captions", "a/b/c", "org/cap tions", "org/", "org/x--y"])
def test_a_wrong_name_is_named(hub: FakeDatasetHub, run: Run, name: str) -> None:
    with pytest.raises(UserError, match=r"is no name of a repository\. Give ORG/NAME"):
        publish(run, name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("GET whoami", 401, "rejects the token .*HF_TOKEN"),
        ("POST create", 403, "no right to write there .*repository of your own"),
        ("POST preupload", 403, "no right to write there"),
        ("POST commit", 403, "no right to write there"),
        ("POST commit", 402, "asks for a payment"),
        ("POST commit", 400, "the Hub refuses the request .HTTP 400: too many files per directory"),
        ("POST commit", 413, "refuses the request .HTTP 413"),
        ("POST batch", 403, "no right to write there"),
        ("PUT object", 403, "no right to write there"),
    ],
)
def test_a_refused_request_is_one_line(hub: FakeDatasetHub, run: Run, kind: str, status: int, message: str) -> None:
    hub.faults[kind] = [lambda: answer(status, {"error": "too many files per directory"})]
    with pytest.raises(UserError, match=message) as refusal:
        publish(run, NAME)
    assert "\n" not in str(refusal.value) and NAME in str(refusal.value)


def test_a_namespace_without_rights_and_a_name_of_another_kind_are_named(hub: FakeDatasetHub, run: Run) -> None:
    with pytest.raises(UserError, match=r"no right to write there .HTTP 403: You don't have the rights"):
        publish(run, "others/captions")
    with pytest.raises(UserError, match=r"the name is taken .*If it is that of another kind of repository"):
        publish(run, "taken/captions")


def test_a_card_that_the_hub_rejects_is_named(hub: FakeDatasetHub, run: Run) -> None:
    hub.faults["POST validate"] = [
        lambda: answer(400, {"errors": [{"message": '"license" is not allowed'}], "warnings": []})
    ]
    with pytest.raises(
        UserError, match=r'refuses the files .Invalid metadata in README.md. - "license" is not allowed'
    ):
        publish(run, NAME)


@pytest.mark.parametrize("kind", ["GET whoami", "POST create", "GET tree", "POST preupload", "POST commit"])
def test_a_rate_limit_is_waited_for_as_the_hub_says(
    hub: FakeDatasetHub, run: Run, waits: list[float], kind: str
) -> None:
    hub.faults[kind] = [lambda: answer(429, {"error": "slow down"}, Retry_After="42")] * 2
    publish(run, NAME)
    assert [wait for wait in waits if wait in (42.0, 43.0)] == waits and len(waits) == 2


def test_a_rate_limit_of_an_hour_is_an_error_that_names_the_time(hub: FakeDatasetHub, run: Run) -> None:
    hub.faults["POST commit"] = [lambda: answer(429, {"error": "slow down"}, Retry_After="3600")]
    with pytest.raises(Unavailable, match=r"limits the number of requests .*try again in 1 h"):
        publish(run, NAME)


@pytest.mark.parametrize("kind", ["GET whoami", "GET tree", "POST preupload", "PUT object", "POST commit"])
@pytest.mark.parametrize("status", [0, 503], ids=["lost connection", "HTTP 503"])
def test_a_failure_that_passes_costs_nothing(hub: FakeDatasetHub, run: Run, kind: str, status: int) -> None:
    hub.faults[kind] = [lambda: answer(status)] * 2
    publish(run, NAME)
    assert not publish(run, NAME).has_changes


@pytest.mark.parametrize("kind", ["GET whoami", "PUT object", "POST commit"])
def test_a_network_that_is_lost_ends_with_exit_code_1_and_the_next_command_continues(
    hub: FakeDatasetHub, run: Run, kind: str
) -> None:
    hub.faults[kind] = [lambda: answer(0)] * 1000
    ended = CliRunner().invoke(app, ["publish", run.url, NAME])
    assert ended.exit_code == 1, ended.output
    assert "cannot be reached" in ended.output and "run the same command again" in ended.output
    assert "secret-signature" not in ended.output and TOKEN not in ended.output
    hub.faults.clear()
    ended = CliRunner().invoke(app, ["publish", run.url, NAME])
    assert ended.exit_code == 0 and f"uploaded to {hub.url}/datasets/{NAME} (public)" in ended.output
    ended = CliRunner().invoke(app, ["publish", run.url, NAME])
    assert ended.exit_code == 0 and "is up to date" in ended.output


def test_no_line_has_the_token(hub: FakeDatasetHub, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults["PUT object"] = [lambda: answer(503)]
    hub.faults["POST commit"] = [lambda: answer(500, {"error": f"no commit for {TOKEN}"})]
    outcome = stages.publish(run.url, NAME, captions_only=True)
    assert TOKEN not in caplog.text + repr(outcome) and "secret-signature" not in caplog.text
    assert "no commit for (token)" in caplog.text


def test_a_message_of_the_hub_is_one_short_line() -> None:
    text = f"two\n lines with https://s3.test/a?X-Amz-Signature=abc and {TOKEN}" + " long" * 100
    assert readable(text).startswith("two lines with https://s3.test/a and (token) long")
    assert len(readable(text)) < 310


def test_a_page_in_place_of_the_hub_is_named(hub: FakeDatasetHub, run: Run) -> None:
    hub.faults["GET whoami"] = [lambda: answer(200, b"<html>Log in</html>")]
    with pytest.raises(UserError, match=r"does not answer as a Hub does\. Check HF_ENDPOINT and the proxy"):
        publish(run, NAME)


def test_offline_mode_is_named(hub: FakeDatasetHub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE forbids to ask the Hub. Unset it"):
        publish(run, NAME)
