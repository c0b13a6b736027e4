"""The demo's own parts: that two demos serve the same URLs, and what is said where they cannot. `make demo` runs it."""

import socket
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline import demo
from lotlip_data.synthetic.http_server import SceneServer


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that was free a moment ago, which new runs would take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    monkeypatch.setattr(demo, "PORT", port)
    return port


def test_a_new_run_takes_the_port_that_all_take_and_any_other_where_that_is_taken(tmp_path: Path, taken: int) -> None:
    """So figures are the same twice: the order of samples follows from their URLs."""
    assert demo._port_of(tmp_path) == taken
    with SceneServer(port=taken) as server:
        assert server.url == f"http://127.0.0.1:{taken}"
        assert demo._port_of(tmp_path) == 0
    assert demo._port_of(tmp_path) == taken


def test_a_run_goes_on_at_its_own_port_or_says_that_it_is_taken(tmp_path: Path, taken: int) -> None:
    (tmp_path / "server.url").write_text(f"http://127.0.0.1:{taken}")
    assert demo._port_of(tmp_path) == taken
    with (
        SceneServer(port=taken),
        pytest.raises(UserError, match=rf"server\.url: .* at port {taken}, .* another folder"),
    ):
        demo._port_of(tmp_path)
