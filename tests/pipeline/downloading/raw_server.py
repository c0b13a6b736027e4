"""A server on loopback that sends exactly the bytes that a test chooses, valid or not."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable

Answer = Callable[[socket.socket], None]


class RawServer:
    """Answers each path with a function of `answers`, which writes to the socket. `requests` has every request."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self._socket = socket.create_server((host, 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def serve(self, path: str, data: bytes) -> str:
        """Answer `path` with `data`. Returns the URL."""
        self.answers[path] = lambda client: client.sendall(data)
        return self.url + path

    def drip(self, path: str, before: bytes, drop: bytes, seconds: float) -> str:
        """Answer `path` with `before`, then with a `drop` every `seconds` seconds, without end. Returns the URL."""

        def answer(client: socket.socket) -> None:
            client.sendall(before)
            while True:
                client.sendall(drop)
                time.sleep(seconds)

        self.answers[path] = answer
        return self.url + path

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # else the thread that waits in `accept` keeps it open
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                return
        with client, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(65536)
                if request[:1] == b"\x16":  # a TLS client
                    client.sendall(b"no TLS")
                    return
            text = request.decode("latin-1")
            self.requests.append(text)
            self.answers[text.split(" ")[1]](client)


def ok(body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
