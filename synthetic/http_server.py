"""A web server of synthetic scenes, with the faults of real hosts.

    python -m lotlip_data.synthetic.http_server --port 8000

| path                    | response                                                                     |
|-------------------------|------------------------------------------------------------------------------|
| `/scene/<seed>.jpg`     | the scene as JPEG, or `.png` as PNG; the same bytes every time               |
| `/redirect/<seed>.jpg`  | 302 to the scene                                                             |
| `/slow/<seed>.jpg`      | the scene, after `delay` seconds                                             |
| `/truncated/<seed>.jpg` | the first half of the scene's bytes, declared as the whole                   |
| `/short/<seed>.jpg`     | the same, but `Content-Length` is that of the whole                          |
| `/robots/<seed>.jpg`    | the scene, with `X-Robots-Tag: noai`                                         |
| `/dead/` `/gone/` `/error/` | 404, 410, 500                                                            |
| `/html/`                | 200 and `image/jpeg`, but the body is a web page                             |
| `/empty/`               | 200 without a body                                                           |
| `/loop/`                | 302 to itself                                                                |
"""

import argparse
import functools
import http.server
import io
import re
import sys
import threading
import time

from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.synthetic.server_process import ServerProcess

_PATH = re.compile(r"/(\w+)/(\d+)\.(jpg|png)")
_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
_STATUS = {"dead": 404, "gone": 410, "error": 500}
_HTML = b"<!DOCTYPE html><html><head><title>Hotlinking is not allowed</title></head><body>Buy now</body></html>"
SCENE_URL = re.compile(r"/(?:scene|redirect|slow|robots)/(\d+)\.(?:jpg|png)$")


@functools.lru_cache(maxsize=4096)
def scene_bytes(seed: int, kind: str = "jpg", pixels: int = 96) -> bytes:
    """The encoded picture of the scene `seed`, `pixels` wide and high. kind: "jpg" or "png"."""
    stream = io.BytesIO()
    if kind == "jpg":
        render(sample_scene(seed), pixels).save(stream, "JPEG", quality=95, subsampling=0)
    else:
        render(sample_scene(seed), pixels).save(stream, "PNG")
    return stream.getvalue()


def seed_from_url(url: str) -> int | None:
    """The seed of the scene that `url` serves, or None if it serves no scene."""
    match = SCENE_URL.search(url)
    return int(match[1]) if match else None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        match = _PATH.fullmatch(self.path)
        if not match:
            self._respond(404)
            return
        route, seed, kind = match[1], int(match[2]), match[3]
        if route == "slow":
            time.sleep(self.server.delay)
        if route in _STATUS:
            self._respond(_STATUS[route])
        elif route in ("html", "empty"):
            self._respond(200, _HTML if route == "html" else b"", "image/jpeg")
        elif route in ("redirect", "loop"):
            self._respond(302, location=f"/scene/{seed}.{kind}" if route == "redirect" else self.path)
        else:
            self._respond_with_scene(route, scene_bytes(seed, kind, self.server.pixels), _MEDIA_TYPES[kind])

    def _respond_with_scene(self, route: str, picture: bytes, media_type: str) -> None:
        if route in ("truncated", "short"):
            length = len(picture) if route == "short" else len(picture) // 2
            self._respond(200, picture[: len(picture) // 2], media_type, length=length)
        elif route == "robots":
            self._respond(200, picture, media_type, robots="noai")
        elif route in ("scene", "slow"):
            self._respond(200, picture, media_type)
        else:
            self._respond(404)

    def _respond(
        self,
        status: int,
        body: bytes = b"",
        media_type: str = "text/html",
        length: int | None = None,
        location: str | None = None,
        robots: str | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        if robots:
            self.send_header("X-Robots-Tag", robots)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the client reports its own requests."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, port: int, delay: float, pixels: int) -> None:
        super().__init__((host, port), _Handler)
        self.delay, self.pixels = delay, pixels

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up, for example after a timeout of theirs."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class SceneServer(ServerProcess):
    """A context manager that runs the server in its own process on 127.0.0.1.

    Args:
        delay: Seconds before a slow response.
        pixels: Width and height of the pictures.
        port: The port; 0 selects a free one.

    Raises:
        RuntimeError: The server does not start.
    """

    def __init__(self, delay: float = 5.0, pixels: int = 96, port: int = 0) -> None:
        self.url = ""
        """For example http://127.0.0.1:40001, without a slash at the end; empty before the block is entered."""
        options = ("--delay", str(delay), "--pixels", str(pixels), "--port", str(port))
        super().__init__("scene server", "http_server", *options)

    def started(self, line: str) -> None:
        self.url = line


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the synthetic scenes over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 selects a free one (default: %(default)s)")
    parser.add_argument(
        "--delay", type=float, default=5.0, help="seconds before a slow response (default: %(default)s)"
    )
    parser.add_argument(
        "--pixels", type=int, default=96, help="width and height of the pictures (default: %(default)s)"
    )
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input closes")
    options = parser.parse_args()
    with _Server(options.host, options.port, options.delay, options.pixels) as server:
        print(f"http://{options.host}:{server.server_address[1]}", flush=True)
        if options.with_parent:  # the pipe closes if the parent is killed, so no server stays behind
            threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _stop_with_parent(server: _Server) -> None:
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
