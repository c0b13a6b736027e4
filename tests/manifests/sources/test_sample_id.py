"""Two spellings of a URL have one identity, two URLs have two, and a URL that is not http has none."""

import hashlib
import re
import string
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip_data.manifests.sources import sample_id
from lotlip_data.manifests.sources.sample_id import normalise_url, uid_from_url

HOST = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){0,3}", fullmatch=True)
REST = st.text(alphabet=string.ascii_letters + string.digits + "/%~._-=é ü", max_size=20).map(str.strip)
SCHEME = st.sampled_from(["http", "https"])


@settings(max_examples=50)
@given(SCHEME, HOST, REST, REST)
def test_case_of_scheme_and_host_default_port_fragment_and_blanks_do_not_matter(
    scheme: str, host: str, path: str, query: str
) -> None:
    port = {"http": "80", "https": "443"}[scheme]
    rest = f"/{path}?{query}" if query else f"/{path}"
    spellings = [
        f"{scheme}://{host}{rest}",
        f"{scheme.upper()}://{host.upper()}:{port}{rest}#top",
        f" {scheme}://{host}:{rest}\n",
    ]
    assert len({uid_from_url(url) for url in spellings}) == 1


@settings(max_examples=50)
@given(SCHEME, HOST, REST)
def test_normalising_twice_is_normalising_once(scheme: str, host: str, path: str) -> None:
    for url in (f"{scheme}://{host}/{path}", f" {scheme}://{host}/{path} # top "):
        once = normalise_url(url)
        assert normalise_url(once) == once


@settings(max_examples=50)
@given(SCHEME, HOST, st.lists(REST, min_size=2, max_size=2, unique=True))
def test_different_paths_have_different_uids(scheme: str, host: str, paths: list[str]) -> None:
    assert uid_from_url(f"{scheme}://{host}/{paths[0]}x") != uid_from_url(f"{scheme}://{host}/{paths[1]}x")


@pytest.mark.parametrize(
    "first, second",
    [
        ("http://a.example/A", "http://a.example/a"),
        ("http://a.example/%7Ex", "http://a.example/~x"),
        ("http://a.example/x?a=1", "http://a.example/x?a=2"),
        ("http://a.example/", "https://a.example/"),
        ("http://a.example/", "http://a.example:8080/"),
        ("http://me@a.example/", "http://a.example/"),
    ],
)
def test_urls_that_a_server_can_distinguish_have_different_uids(first: str, second: str) -> None:
    assert uid_from_url(first) != uid_from_url(second)


PIECES = st.lists(
    st.sampled_from(
        [*"/?#&=:@%;,'\"!$~._-[]\\^|<>{} \t\r\n\x00\x1f\x7f\x85\xa0\u2003\u2100éAz9", "//", ":80", "?#", "a.b"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=2000)
@given(st.sampled_from(["http://", "https://", "HTTP://", "http:/", " http://"]), HOST | PIECES, PIECES)
def test_the_quick_check_gives_the_result_of_parsing(before: str, host: str, rest: str) -> None:
    """A URL that passes the quick check is normalised. All existing uids come from parsing."""

    def outcome() -> str:
        try:
            return normalise_url(before + host + rest)
        except ValueError as error:
            return f"refused: {error}"

    quick = outcome()
    with mock.patch.object(sample_id, "_NORMAL", re.compile(r"(?!)")):
        assert quick == outcome()


def test_a_uid_is_the_sha256_of_the_normalised_url_in_every_release() -> None:
    assert normalise_url("HTTP://A.Example:80/P?q#f") == "http://a.example/P?q"
    assert normalise_url("http://a.example") == "http://a.example/"
    assert uid_from_url("HTTP://A.Example:80/P?q#f") == hashlib.sha256(b"http://a.example/P?q").hexdigest()[:32]


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a.example/x", "file:///etc/passwd", "data:image/png;base64,x", "//a.example/x", "a.example/x"],
)
def test_a_url_that_is_not_http_has_no_uid(url: str) -> None:
    with pytest.raises(ValueError, match="not an http or https URL"):
        uid_from_url(url)


@pytest.mark.parametrize("url", ["http://", "http:///x", "https://:443/x", "http://me@/x"])
def test_a_url_without_a_host_has_no_uid(url: str) -> None:
    with pytest.raises(ValueError, match="the URL names no host"):
        uid_from_url(url)
