"""The HTTP client against hostile servers: addresses, redirects, sizes and times."""

import contextlib
import gzip
import pathlib
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.downloading import connection, http_client
from lotlip_data.pipeline.downloading.connection import is_public
from lotlip_data.pipeline.downloading.consent import BROWSER
from lotlip_data.pipeline.downloading.failures import (
    VOCABULARY,
    FetchError,
    is_transient,
    retry_condition,
    split_message,
)
from lotlip_data.pipeline.downloading.http_client import GuardedOpener, guarded_urlopen
from tests.pipeline.downloading.raw_server import RawServer, ok, redirect


@pytest.fixture
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def fetch(url: str, **settings: object) -> bytes:
    defaults = {"allow_hosts": ("127.0.0.1",), "timeout": 60, "total_timeout": 120, "retries": 0, "max_bytes": 100_000}
    opener = GuardedOpener(DownloadSettings.model_validate(defaults | settings))
    return opener.open(urllib.request.Request(url, headers={"User-Agent": "test"})).read()


def reason_of(url: str, **settings: object) -> str:
    with pytest.raises(FetchError) as refusal:
        fetch(url, **settings)
    assert split_message(str(refusal.value))[0] == refusal.value.reason
    return refusal.value.reason


def test_a_body_with_a_length_in_chunks_or_until_the_connection_closes_is_complete(server: RawServer) -> None:
    body = bytes(range(256)) * 300
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"".join(b"400\r\n" + body[at : at + 1024] + b"\r\n" for at in range(0, len(body), 1024)) + b"0\r\n\r\n"
    assert fetch(server.serve("/length", ok(body))) == body
    assert fetch(server.serve("/chunked", chunked)) == body
    assert fetch(server.serve("/closed", b"HTTP/1.0 200 OK\r\n\r\n" + body)) == body


def test_urlopen_is_guarded_only_inside_the_with_block(server: RawServer) -> None:
    url = server.serve("/x", ok(b"body"))
    with guarded_urlopen(DownloadSettings()), pytest.raises(FetchError, match="address not allowed"):
        urllib.request.urlopen(url)
    assert urllib.request.urlopen(url).read() == b"body"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
        *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "240.0.0.1", "192.0.0.1"),
    ],
)
def test_private_and_reserved_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_internet_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "127.1", "2130706433", "[::1]", "0"])
def test_a_private_host_is_refused_in_every_notation_of_its_address(server: RawServer, host: str) -> None:
    assert reason_of(f"http://{host}:{server.port}/x", allow_hosts=()) == "address not allowed"
    assert server.requests == []


def test_a_redirect_is_checked_like_the_first_address(server: RawServer) -> None:
    server.serve("/secret", ok(b"secret"))
    to_localhost = server.serve("/out", redirect(f"http://localhost:{server.port}/secret"))
    assert reason_of(to_localhost) == "address not allowed"
    assert reason_of(server.serve("/file", redirect("file:///etc/passwd"))) == "scheme not allowed"
    assert reason_of(server.serve("/ftp", redirect("ftp://127.0.0.1/x"))) == "scheme not allowed"
    assert [request.split(" ")[1] for request in server.requests] == ["/out", "/file", "/ftp"]


def test_the_checked_address_is_the_one_connected_to(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding (first a public address, then a private one) has no effect."""
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 80))]])
    connected = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(answers))
    monkeypatch.setattr(connection, "is_public", lambda address: True)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address) or self.shutdown(2))
    reason_of("http://rebinding.example/x")
    assert connected == [("203.0.113.9", 80)]  # one lookup, whose address is used


def test_redirects_are_followed_up_to_a_limit_with_relative_and_unescaped_targets(server: RawServer) -> None:
    server.serve("/a%20b/%FC.jpg?q=%22", ok(b"found"))
    assert fetch(server.serve("/relative", redirect('a b/\xfc.jpg?q="').decode().encode("latin-1"))) == b"found"
    for index in range(22):
        server.serve(f"/hop{index}", redirect(f"/hop{index + 1}"))
    server.serve("/hop22", ok(b"far"))
    assert fetch(server.url + "/hop2") == b"far"  # twenty redirects
    assert reason_of(server.url + "/hop1") == "too many redirects"
    assert reason_of(server.serve("/nowhere", b"HTTP/1.1 302 Found\r\n\r\n")) == "redirect without a target"


def test_a_body_over_the_size_limit_is_not_read_to_its_end(server: RawServer) -> None:
    assert fetch(server.serve("/just", ok(b"x" * 1000)), max_bytes=1000)
    assert reason_of(server.serve("/promised", ok(b"x" * 1001)), max_bytes=1000) == "too large"
    endless = server.drip("/endless", b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 65536, 0)
    assert reason_of(endless, max_bytes=1_000_000) == "too large"


def test_a_compressed_body_is_not_decompressed(server: RawServer) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert fetch(server.serve("/bomb", ok(bomb, "Content-Encoding: gzip\r\n"))) == bomb


@pytest.mark.parametrize(
    "before, drop",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-Endless: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"H"),
    ],
    ids=["body", "header", "chunks", "status line"],
)
def test_a_dripping_server_is_abandoned_after_the_total_timeout(server: RawServer, before: bytes, drop: bytes) -> None:
    url = server.drip("/drip", before, drop, 0.05)
    started = time.monotonic()
    assert reason_of(url, timeout=0.5, total_timeout=1.0) == "timeout"
    assert time.monotonic() - started < 60  # the drip would take minutes


def test_a_server_that_drips_its_tls_handshake_is_abandoned_too() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"\x16\x03\x03\x40\x00\x02")  # a record of 16 kB, sent byte by byte
            while True:
                client.sendall(b"\0")
                time.sleep(0.05)

    threading.Thread(target=serve, daemon=True).start()
    started = time.monotonic()
    assert reason_of(f"https://127.0.0.1:{listener.getsockname()[1]}/x", timeout=0.5, total_timeout=1.0) == "timeout"
    assert time.monotonic() - started < 60  # the drip would take minutes
    listener.close()


def test_https_requires_a_trusted_certificate_for_the_host_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    server = RawServer(tls=context)
    path = server.serve("/x", ok(b"body")).removeprefix(server.url)
    named, unnamed = f"https://localhost:{server.port}{path}", f"https://127.0.0.1:{server.port}{path}"
    settings = {"allow_hosts": ("localhost", "127.0.0.1")}
    try:
        assert reason_of(named, **settings) == "tls error", "its authority is not trusted yet"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        connection._tls.cache_clear()
        assert fetch(named, **settings) == b"body"
        assert reason_of(unnamed, **settings) == "tls error"
    finally:
        connection._tls.cache_clear()
        server.close()


def test_a_silent_server_is_abandoned_after_the_timeout_of_one_operation(server: RawServer) -> None:
    server.answers["/silent"] = lambda client: time.sleep(120)
    started = time.monotonic()
    assert reason_of(server.url + "/silent", timeout=0.3, total_timeout=100) == "timeout"
    assert time.monotonic() - started < 50


def test_each_broken_response_has_its_reason(server: RawServer) -> None:
    assert reason_of(server.serve("/dead", b"HTTP/1.1 404 Not Found\r\n\r\n")) == "http 404"
    assert reason_of(server.serve("/empty", ok(b""))) == "empty body"
    assert reason_of(server.serve("/none", b"HTTP/1.1 204 No Content\r\n\r\n")) == "empty body"
    assert reason_of(server.serve("/cut", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx")) == "truncated"
    cut_chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nxxx"
    assert reason_of(server.serve("/chunk", cut_chunk)) == "truncated"
    assert reason_of(server.serve("/junk", b"\x00\x01\x02\r\n\r\n")) == "malformed response"
    assert reason_of(server.serve("/long", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000)) == "malformed response"
    assert reason_of(server.serve("/open", b"HTTP/1.1 200 OK\r\nX: y")) == "connection lost"
    assert reason_of(server.serve("/closed", b"")) == "connection lost"
    assert reason_of(server.url.replace("http:", "https:") + "/closed") == "tls error"


def test_each_unreachable_host_has_its_reason(server: RawServer) -> None:
    server.close()
    assert reason_of(server.url + "/x") == "connection refused"
    assert reason_of("http://nowhere.invalid/x") == "name not resolved"
    assert reason_of(f"http://{'a' * 70}.example/x") == "malformed url"
    assert reason_of("http://a.example:port/x") == "malformed url"


def test_only_transient_failures_are_retried(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "BACKOFF_SECONDS", 0.01)
    answers = iter([b"HTTP/1.1 503 Busy\r\n\r\n", b"", ok(b"at last")])
    server.answers["/busy"] = lambda client: client.sendall(next(answers))
    assert fetch(server.url + "/busy", retries=2) == b"at last"
    reason_of(server.serve("/dead", b"HTTP/1.1 404 Not Found\r\n\r\n"), retries=2)
    assert [request.split(" ")[1] for request in server.requests] == ["/busy"] * 3 + ["/dead"]


def test_a_private_host_is_refused_without_a_retry_and_the_hint_names_the_setting(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups, real_getaddrinfo = list[str](), socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        lookups.append(host)
        return real_getaddrinfo(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(http_client, "BACKOFF_SECONDS", 0.01)
    assert reason_of(server.serve("/x", ok(b"x")), allow_hosts=(), retries=3) == "address not allowed"
    assert lookups == ["127.0.0.1"]
    hint = "`download.allow_hosts` in the manifest lists their private hosts"
    assert retry_condition(["address not allowed", "http 404"]) == hint
    assert retry_condition(["timeout", "address not allowed"]) == f"the servers are reachable and {hint}"
    assert retry_condition(["timeout", "http 404"]) == "the servers are reachable"


def test_unescaped_urls_become_valid_requests(server: RawServer) -> None:
    server.serve("/caf%C3%A9%20ol%C3%A9.jpg?x=%E2%98%95&y=a%2Fb", ok(b"found"))
    assert fetch(f"{server.url}/café olé.jpg?x=☕&y=a%2Fb#fragment") == b"found"


def test_credentials_go_to_the_listed_host_only_and_into_no_message(server: RawServer) -> None:
    other = RawServer()
    target = other.serve("/image", ok(b"image"))
    server.serve("/private?token=sesame", redirect(target))
    address = f"127.0.0.1:{server.port}"
    assert fetch(f"http://me:pass%20word@{address}/private?token=sesame") == b"image"
    assert "Authorization: Basic bWU6cGFzcyB3b3Jk" in server.requests[0]
    assert f"Host: {address}" in server.requests[0]
    assert "Authorization" not in other.requests[0]
    other.close()
    for url in (f"http://me:secret@{address}/dead?token=secret", "http://me:secret@a.example:secret/"):
        server.serve("/dead?token=secret", b"HTTP/1.1 404 Not Found\r\n\r\n")
        with pytest.raises(FetchError) as refusal:
            fetch(url)
        assert "secret" not in str(refusal.value)


def test_every_message_has_a_reason_of_the_vocabulary_and_transient_ones_are_known() -> None:
    assert split_message("http 404") == ("http 404", "")
    assert split_message("timeout: of the whole fetch") == ("timeout", "of the whole fetch")
    assert split_message("Image decoding error") == ("cannot be decoded", "Image decoding error")
    assert split_message("something new: x") == ("other", "something new: x")
    transient = {reason for reason in VOCABULARY if is_transient(reason)}
    host_failures = {"timeout", "connection refused", "connection lost", "host unreachable", "name not resolved"}
    assert transient == host_failures | {"host is down", "host is busy", "address not allowed"}
    assert [status for status in (404, 403, 410, 408, 429, 500, 503) if is_transient(f"http {status}")] == [
        408,
        429,
        500,
        503,
    ]


def test_interim_responses_and_odd_heads_are_read_as_browsers_read_them(server: RawServer) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 102 Processing\r\n\r\n" + early * 2
    assert fetch(server.serve("/interim", interim + ok(b"body"))) == b"body"
    assert fetch(server.serve("/many", ok(b"body", "Set-Cookie: a=b\r\n" * 5000))) == b"body"
    assert fetch(server.serve("/long", ok(b"body", f"Set-Cookie: {'x' * 200_000}\r\n"))) == b"body"
    assert fetch(server.serve("/no-reason", b"HTTP/1.1 200\nContent-Length: 4\n\nbody+")) == b"body"
    assert (
        fetch(server.serve("/not-a-header", ok(b"body", "nonsense\r\n folded\r\n: empty\r\nA: b\r\n c\r\n"))) == b"body"
    )
    assert fetch(server.serve("/twice", ok(b"body", "Content-Length: 4\r\n"))) == b"body"
    assert reason_of(server.serve("/differ", ok(b"body", "Content-Length: 5\r\n"))) == "malformed response"
    assert reason_of(server.serve("/switch", b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) == "http 101"
    assert reason_of(server.serve("/reset", b"HTTP/1.1 205 Reset Content\r\n\r\n")) == "empty body"


def test_heads_without_end_are_refused_at_a_limit_of_bytes(server: RawServer) -> None:
    for path, before, drop in (
        ("/headers", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000),
        ("/header", b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
        ("/interim", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
        ("/blank", b"", b"\r\n" * 10_000),
    ):
        assert reason_of(server.drip(path, before, drop, 0)) == "malformed response"


def test_a_redirect_that_sets_a_cookie_gets_it_back_within_its_own_chain_only(server: RawServer) -> None:
    def wall(client: socket.socket) -> None:
        seen = "Cookie: seen=1; b=2\r\n" in server.requests[-1]
        cookies = [b"seen=1; Path=/; Domain=127.0.0.1", b"b=2", b"c=" + b"x" * 5000]
        setting = b"".join(b"Set-Cookie: " + cookie + b"\r\n" for cookie in cookies)
        client.sendall(ok(b"body") if seen else redirect("/wall").replace(b"\r\n\r\n", b"\r\n" + setting + b"\r\n"))

    server.answers["/wall"] = wall
    assert [fetch(server.url + "/wall") for _ in range(2)] == [b"body"] * 2
    assert ["Cookie" in request for request in server.requests] == [False, True] * 2
    other = RawServer("127.0.0.2")
    setting = b"\r\nSet-Cookie: secret=1\r\n\r\n"
    server.serve("/out", redirect(other.serve("/image", ok(b"image"))).replace(b"\r\n\r\n", setting))
    assert fetch(server.url + "/out", allow_hosts=("127.0.0.1", "127.0.0.2")) == b"image"
    assert "Cookie" not in other.requests[0]
    other.close()


def test_a_malformed_redirect_target_is_a_malformed_url(server: RawServer) -> None:
    for index, target in enumerate(("http://[1", "//a:b/", "http://a%1b[0m.example/", "http://\x9b.example/")):
        assert reason_of(server.serve(f"/{index}", redirect(target))) == "malformed url"
    server.serve("/x/y", ok(b"body"))
    assert fetch(server.serve("/back", redirect("\\x\\y"))) == b"body"


@pytest.mark.parametrize(
    "setting, sent",
    [
        ("lotlip-data", f"{BROWSER} (compatible; lotlip-data;"),
        ("Bot/1.0 (+https://example.org; me@example.org)", "Bot/1.0 (+https://example.org; me@example.org)\r\n"),
        ("curl/8.0", "curl/8.0\r\n"),
        (None, f"{BROWSER}\r\n"),
    ],
)  # fmt: skip
def test_the_user_agent_is_sent_as_it_is_set(server: RawServer, setting: str | None, sent: str) -> None:
    fetch(server.serve("/x", ok(b"body")), user_agent=setting)
    assert f"User-Agent: {sent}" in server.requests[0]


def test_a_user_agent_that_no_header_can_hold_is_refused() -> None:
    for text in ("a\r\nX: y", "", " a", "ä/1"):
        with pytest.raises(ValueError, match="User-Agent"):
            DownloadSettings(user_agent=text)
