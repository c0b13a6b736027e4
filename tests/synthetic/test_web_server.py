"""The server that answers like the web: what a URL gives, and after how long, depends on its number only."""

import io
import socket
import urllib.request
from collections import Counter

import pytest
from PIL import Image

from lotlip_data.synthetic import web_server
from lotlip_data.synthetic.web_server import WebServer, host_of, live_host, photograph, seconds_of


def test_hosts_have_the_shares_that_are_stated() -> None:
    hosts = Counter(map(host_of, range(20_000)))
    assert abs(hosts[live_host(0)] / 20_000 - web_server.DOMINANT_SHARE) < 0.02
    dead = [count for host, count in hosts.items() if not host.startswith("127.1.")]
    assert abs(sum(dead) / 20_000 - web_server.DEAD_SHARE) < 0.01
    assert len(dead) == 3 * web_server.DEAD_HOSTS
    assert len(hosts) - len(dead) == web_server.HOSTS


def test_the_time_to_an_answer_is_log_normal_with_a_slow_tail() -> None:
    seconds = sorted(map(seconds_of, range(20_000)))
    assert seconds[10_000] == pytest.approx(web_server.MEDIAN_SECONDS, rel=0.05)
    assert 0.008 < sum(value > 5 for value in seconds) / 20_000 / 0.5 < 0.012
    assert seconds == sorted(map(seconds_of, range(20_000)))


def test_a_picture_has_its_size_and_the_bits_per_pixel_of_a_photograph() -> None:
    for seed in range(6):
        data = photograph(seed, 0.6, (3, 2))
        width, height = Image.open(io.BytesIO(data)).size
        assert width / height == pytest.approx(1.5, rel=0.01)
        assert width * height == pytest.approx(600_000, rel=0.01)
        assert 0.4 < 8 * len(data) / (width * height) < 3
    assert photograph(3, 0.6, (3, 2)) == photograph(3, 0.6, (3, 2))


@pytest.mark.slow
def test_live_hosts_answer_and_dead_hosts_refuse_or_keep_silent() -> None:
    quick = min((number for number in range(200) if host_of(number) == live_host(3)), key=seconds_of)
    with WebServer(pictures=1) as server:
        (url,) = server.urls([quick])
        with urllib.request.urlopen(url, timeout=60) as response:
            assert Image.open(io.BytesIO(response.read())).format == "JPEG"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((web_server.refusing_host(0), server.port), timeout=60)
        with socket.create_connection((web_server.silent_host(0), server.port), timeout=60) as silent:
            silent.sendall(b"GET /1.jpg HTTP/1.1\r\n\r\n")
            silent.settimeout(0.2)
            with pytest.raises(TimeoutError):
                silent.recv(1)
