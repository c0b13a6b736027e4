"""A host is contacted under the name that browsers ask for, and a name that no host can have is refused."""

import pytest

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.sources.hosts import ascii_host
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.url_parsing import parse_url


@pytest.mark.parametrize(
    "name, asked",
    [
        ("straße.example", "xn--strae-oqa.example"),
        ("stra%C3%9Fe.example", "xn--strae-oqa.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("κλαρα-σωλις.ευ", "xn----ylba7abgd9bnh0e.xn--qxa6a"),
        ("☃.example", "xn--n3h.example"),
        ("👍.example", "xn--yp8h.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("日本語。jp", "xn--wgv71a119e.jp"),
        ("نامه‌ای.com", "xn--mgba3gch31f060k.com"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("ｌocalhost", "localhost"),
        ("My_Host.example.", "my_host.example."),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
    ],
)
def test_a_name_is_converted_as_in_browsers(name: str, asked: str) -> None:
    assert ascii_host(name) == asked
    assert parse_url(f"http://user@{name}:8080/a").host == asked
    assert parse_url(f"http://{name}:8080/a").host_header == f"{asked}:8080"


@pytest.mark.parametrize(
    "name",
    [
        "a\x1b[0m.b", "a\x07", "a\x9b31m", "a\x00b", "a%1b%5b0m", "a%00b", "a b", "a\x7f.b", "\xa0.com", "a<b", "a%ff",
        "a\u202e.b", "a\u2066b", "a\u200eb", "a\u061cb", "é\u200db.com", "אa.com", "", ".", "a..b", "x" * 64,
        "x." * 127 + "x", "\ud800.com", "\u0300.com",
    ],
)  # fmt: skip
def test_a_name_that_no_host_can_have_is_a_malformed_url(name: str) -> None:
    with pytest.raises(ValueError):
        ascii_host(name)
    with pytest.raises(FetchError, match="malformed url"):
        parse_url(f"http://{name}/1.jpg")


def test_a_private_host_is_allowed_in_the_spelling_that_requests_use() -> None:
    with pytest.raises(ValueError, match=r"xn--strae-oqa\.intra"):
        DownloadSettings(allow_hosts=("straße.intra",))
    assert DownloadSettings(allow_hosts=("xn--strae-oqa.intra",))
