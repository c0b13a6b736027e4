"""What the hub answers, or that it does not answer, becomes one sentence with the model's name and the remedy."""

import http.server
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from tests.support.web_server import serving

MODEL = "someone/llava"
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A hub on this machine. The fixture is a function that sets its answer to every request."""
    current: list[Answer] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = current[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def set_answer(status: int, code: str = "", body: bytes = b"{}") -> None:
        current[:] = [(status, {"X-Error-Code": code} if code else {}, body)]

    with serving(Hub) as url:
        use_hub(monkeypatch, url, tmp_path)
        yield set_answer


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))


@pytest.mark.parametrize(
    ("status", "code", "message", "is_final"),
    [
        (401, "RepoNotFound", "the hub has no such model, or it is private; .*HF_TOKEN", True),
        (404, "RepoNotFound", "the hub has no such model, or it is private; .*HF_TOKEN", True),
        (
            403,
            "GatedRepo",
            "grants access on request only; accept the terms at .*/someone/llava and set HF_TOKEN",
            True,
        ),
        (401, "GatedRepo", "grants access on request only; accept the terms", True),
        (404, "RevisionNotFound", "the hub has no revision 'v9' of it; correct `revision`", True),
        (403, "", r"denies access \(HTTP 403\); set HF_TOKEN", True),
        (400, "", r"answers with HTTP 400; check HF_ENDPOINT", True),
        (429, "", r"limits the number of requests \(HTTP 429\); wait", False),
        (503, "", r"fails \(HTTP 503\); try again later", False),
    ],
)
def test_each_answer_of_the_hub(
    answer: Callable[..., None], status: int, code: str, message: str, is_final: bool
) -> None:
    answer(status, code)
    with pytest.raises(hub.ModelUnavailable, match=f"^{MODEL}: .*{message}") as caught:
        hub.find_model(MODEL, "v9")
    assert isinstance(caught.value, hub.HubUnreachable) is not is_final
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_not_the_hubs(answer: Callable[..., None]) -> None:
    answer(200, body=b"<html>Sign in to the network</html>")
    with pytest.raises(hub.HubUnreachable, match=f"{MODEL}: asking the hub .* failed .*; check the network"):
        hub.find_model(MODEL)


def test_a_token_that_cannot_be_sent(answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    answer(200)
    monkeypatch.setenv("HF_TOKEN", "hf_…")
    with pytest.raises(hub.ModelUnavailable, match=f"{MODEL}: .*characters that no token has; set HF_TOKEN") as caught:
        hub.find_model(MODEL)
    assert not isinstance(caught.value, hub.HubUnreachable) and "hf_" not in str(caught.value)


def test_a_model_that_the_hub_has(answer: Callable[..., None]) -> None:
    answer(200, body=json.dumps({"id": MODEL, "siblings": [], "tags": []}).encode())
    assert hub.find_model(MODEL) is None


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{free}", "http://no-such-host.invalid", "127.0.0.1:1"])
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        use_hub(monkeypatch, endpoint.format(free=closed.getsockname()[1]), tmp_path)
        with pytest.raises(hub.HubUnreachable, match=f"{MODEL}.*cannot be reached.*check the network"):
            hub.find_model(MODEL)


def test_a_model_in_the_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub(monkeypatch, "http://no-such-host.invalid", tmp_path)
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--llava"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "llava"}')
    assert hub.find_model(MODEL) == repository / "snapshots" / commit
    assert hub.read_config(MODEL) == {"model_type": "llava"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("./folder", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("tiny-blip", "no such checkpoint comes with the project"),
        ("some model", "is neither a folder here nor the id of a model"),
    ],
)
def test_a_name_that_cannot_be_right_is_not_sent_to_the_hub(model: str, message: str) -> None:
    with pytest.raises(hub.ModelUnavailable, match=message):
        hub.find_model(model)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "has no config.json"), ("{", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_a_folder_without_a_usable_config(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
        hub.read_config(str(tmp_path))


def test_the_cause_is_found_below_the_errors_of_other_libraries() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    error = OSError("We couldn't connect to the hub.\nCheck your internet connection.")
    error.__cause__ = LocalEntryNotFoundError("no such file in the cache")
    error.__cause__.__cause__ = ConnectionRefusedError(111, "Connection refused")
    explained = hub.explain(error, MODEL)
    assert isinstance(explained, hub.HubUnreachable) and "Connection refused" in str(explained)
    assert hub.explain(OSError("another error"), MODEL) is None
