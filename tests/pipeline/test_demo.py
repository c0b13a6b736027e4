"""The demo's port: two demos serve the same URLs, or an error says why they cannot; and what its table says of gains.

`make demo` runs the whole demo.
"""

import socket
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline import demo
from lotlip_data.synthetic.http_server import SceneServer


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of new runs, which is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    monkeypatch.setattr(demo, "PORT", number)
    return number


def test_a_new_run_has_the_fixed_port_or_any_other_if_that_is_in_use(tmp_path: Path, port: int) -> None:
    """The fixed port makes the figures reproducible, since the URLs decide the order of the samples."""
    assert demo._port_of(tmp_path) == port
    with SceneServer(port=port) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        assert demo._port_of(tmp_path) == 0
    assert demo._port_of(tmp_path) == port


def test_a_run_keeps_its_port_or_fails_if_that_is_in_use(tmp_path: Path, port: int) -> None:
    (tmp_path / "server.url").write_text(f"http://127.0.0.1:{port}")
    assert demo._port_of(tmp_path) == port
    with (
        SceneServer(port=port),
        pytest.raises(UserError, match=rf"server\.url: .* at port {port}, .* another folder"),
    ):
        demo._port_of(tmp_path)


def test_a_gain_that_the_scenes_do_not_decide_is_called_so() -> None:
    decided = {"points": 58.04, "interval": [53.2, 62.8], "is_decided": True}
    undecided = {"points": -1.2, "interval": [-5.0, 2.6], "is_decided": False}
    figures = {"gains": {"lit_long": {"t2i": decided, "i2t": decided}, "lotlip": {"t2i": undecided, "i2t": decided}}}
    lines = demo._gains(figures)
    gain = "+58.0 [+53.2, +62.8]"
    assert lines[0] == f"LiT + long texts minus LiT, long texts: {gain}, {gain}"
    assert lines[1] == f"LoTLIP minus LiT + long texts, long texts: -1.2 [-5.0, +2.6] (not decided), {gain}"
    assert lines[-1].endswith("LoTLIP's lead over LiT + long texts is undecided: docs/study/index.md.")
    assert demo._gains({}) == [], "figures of an earlier release"
