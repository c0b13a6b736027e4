"""Reads an HTTP/1 response: its head within a limit of bytes, tolerant as browsers are, and its body."""

import http.client
import io
import re
from email.message import Message
from typing import Any

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError

MAX_HEAD_BYTES = 256 << 10
"""Bytes of status line and headers, those of interim responses (1xx) included. Browsers have the same limit."""

_CHUNK_BYTES = 1 << 16
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_STATUS_LINE = re.compile(rb"HTTP(?:/[\d.]+)?[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_SWITCHING_PROTOCOLS = 101


def read_head(stream: io.BufferedReader) -> tuple[int, Message]:
    """Read the status and the headers of a response. Skips the interim responses before it, such as 103 Early Hints.

    Raises:
        FetchError: The response is malformed, its head has more than `MAX_HEAD_BYTES` bytes, or the connection closed.
    """
    remaining = MAX_HEAD_BYTES
    while True:
        lines, remaining = _head_lines(stream, remaining)
        match = _STATUS_LINE.match(lines[0])
        if match is None:
            raise FetchError(failures.BAD_RESPONSE, "no HTTP status line")
        status = int(match[1])
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            return status, _headers(lines[1:])


def _head_lines(stream: io.BufferedReader, remaining: int) -> tuple[list[bytes], int]:
    """The lines up to a blank one, and the bytes that remain of the limit."""
    lines = list[bytes]()
    while True:
        line = stream.readline(remaining)
        remaining -= len(line)
        if remaining <= 0:
            raise FetchError(failures.BAD_RESPONSE, f"more than {MAX_HEAD_BYTES} bytes of headers")
        if not line.endswith(b"\n"):
            raise FetchError(failures.LOST)
        if line := line.rstrip(b"\r\n"):
            lines.append(line)
        elif lines:
            return lines, remaining


def _headers(lines: list[bytes]) -> Message:
    """The headers. A line that is none is skipped, so that it does not hide those after it."""
    fields: list[list[str]] = []
    for line in lines:
        text = line.decode("latin-1")
        name, colon, value = text.partition(":")
        if text[0] in " \t" and fields:  # continues the header before it
            fields[-1][1] += " " + text.strip()
        elif colon and name.strip():
            fields.append([name.strip(), value.strip()])
    headers = Message()
    for name, value in fields:
        headers[name] = value
    return headers


def read_body(stream: io.BufferedReader, headers: Message, max_bytes: int) -> bytes:
    """Read the body of a response.

    Raises:
        FetchError: The body is longer than `max_bytes`, incomplete, or empty.
        http.client.HTTPException: Its chunks are malformed.
    """
    encodings = ",".join(headers.get_all("Transfer-Encoding", [])).lower().split(",")
    is_chunked = encodings[-1].strip() == "chunked"
    length = None if is_chunked else _content_length(headers)
    if length is not None and length > max_bytes:
        raise FetchError(failures.TOO_LARGE, f"{length} bytes, more than {max_bytes}")
    source: io.BufferedIOBase = _chunked(stream) if is_chunked else stream
    pieces, size = list[bytes](), 0
    while piece := source.read(_CHUNK_BYTES if length is None else length - size):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise FetchError(failures.TOO_LARGE, f"more than {max_bytes} bytes")
    if length is not None and size < length:
        raise FetchError(failures.TRUNCATED, f"received {size} of {length} bytes")
    if not size:
        raise FetchError(failures.EMPTY)
    return b"".join(pieces)


def _content_length(headers: Message) -> int | None:
    """The length that the head states. None: the body ends with the connection."""
    lengths = {length.strip() for value in headers.get_all("Content-Length", []) for length in value.split(",")}
    if len(lengths) > 1:
        raise FetchError(failures.BAD_RESPONSE, "several different Content-Length headers")
    text = lengths.pop() if lengths else ""
    return int(text) if text.isascii() and text.isdigit() else None


def _chunked(stream: io.BufferedReader) -> http.client.HTTPResponse:
    """The standard library's reader of a body in chunks, whose head has been read."""
    response = http.client.HTTPResponse(_Replay(_CHUNKED_HEAD, stream), method="GET")  # type: ignore[arg-type]
    response.begin()
    return response


class _Replay(io.RawIOBase):
    """What `http.client.HTTPResponse` uses of a socket: gives it `head`, then what is left of `stream`."""

    def __init__(self, head: bytes, stream: io.BufferedReader) -> None:
        self._head, self._stream = io.BytesIO(head), stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._head.readinto(buffer) or self._stream.readinto1(buffer)
