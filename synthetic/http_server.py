"""A web server of scenes, and of everything that goes wrong on the web.

    python -m lotlip_data.synthetic.http_server --port 8000

| path                    | answer                                                                       |
|-------------------------|------------------------------------------------------------------------------|
| `/scene/<seed>.jpg`     | the scene as JPEG, `.png` as PNG; the same bytes every time                  |
| `/redirect/<seed>.jpg`  | 302 to the scene                                                             |
| `/slow/<seed>.jpg`      | the scene, after `delay` seconds                                             |
| `/truncated/<seed>.jpg` | the first half of the scene's bytes, as if they were all                     |
| `/short/<seed>.jpg`     | the same, but `Content-Length` promises the whole                            |
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
import subprocess
import sys
import threading
import time
from types import TracebackType

from lotlip_data.synthetic.scenes import render, sample_scene

_PATH = re.compile(r"/(\w+)/(\d+)\.(jpg|png)")
_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
_STATUS = {"dead": 404, "gone": 410, "error": 500}
_HTML = b"<!DOCTYPE html><html><head><title>Hotlinking is not allowed</title></head><body>Buy now</body></html>"
SCENE_URL = re.compile(r"/(?:scene|redirect|slow|robots)/(\d+)\.(?:jpg|png)$")


@functools.lru_cache(maxsize=4096)
def scene_bytes(seed: int, kind: str = "jpg", pixels: int = 96) -> bytes:
    """The picture of the scene `seed` as a file, `pixels` wide and high, `kind` jpg or png."""
    stream = io.BytesIO()
    if kind == "jpg":
        render(sample_scene(seed), pixels).save(stream, "JPEG", quality=95, subsampling=0)
    else:
        render(sample_scene(seed), pixels).save(stream, "PNG")
    return stream.getvalue()


def seed_of(url: str) -> int | None:
    """The seed of the scene that `url` shows; None where it shows none."""
    found = SCENE_URL.search(url)
    return int(found[1]) if found else None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        found = _PATH.fullmatch(self.path)
        if not found:
            self._answer(404)
            return
        place, seed, kind = found[1], int(found[2]), found[3]
        if place == "slow":
            time.sleep(self.server.delay)
        if place in _STATUS:
            self._answer(_STATUS[place])
        elif place in ("html", "empty"):
            self._answer(200, _HTML if place == "html" else b"", "image/jpeg")
        elif place in ("redirect", "loop"):
            self._answer(302, location=f"/scene/{seed}.{kind}" if place == "redirect" else self.path)
        else:
            self._scene(
                place, scene_bytes(seed, kind, self.server.pixels), f"image/{'jpeg' if kind == 'jpg' else kind}"
            )

    def _scene(self, place: str, picture: bytes, media_type: str) -> None:
        if place in ("truncated", "short"):
            length = len(picture) if place == "short" else len(picture) // 2
            self._answer(200, picture[: len(picture) // 2], media_type, length=length)
        elif place == "robots":
            self._answer(200, picture, media_type, robots="noai")
        elif place in ("scene", "slow"):
            self._answer(200, picture, media_type)
        else:
            self._answer(404)

    def _answer(
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
        """Silent: the client's own report is what counts."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, port: int, delay: float, pixels: int) -> None:
        super().__init__((host, port), _Handler)
        self.delay, self.pixels = delay, pixels

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up (one that lost patience, say) is no error of the server's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class SceneServer:
    """The server in a process of its own on 127.0.0.1, for as long as the `with` block lasts.

    `delay`: seconds before a slow answer. `pixels`: width and height of the pictures. `port`: 0 takes a free one.
    """

    def __init__(self, delay: float = 5.0, pixels: int = 96, port: int = 0) -> None:
        self.url = ""
        """Such as http://127.0.0.1:40001, without a slash at the end; known once the block is entered."""
        self._options = ["--delay", str(delay), "--pixels", str(pixels), "--port", str(port), "--with-parent"]

    def __enter__(self) -> "SceneServer":
        command = [sys.executable, "-m", "lotlip_data.synthetic.http_server", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the world's server did not start: exit {self._process.wait()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the offline world's scenes over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--delay", type=float, default=5.0, help="seconds before a slow answer")
    parser.add_argument("--pixels", type=int, default=96, help="width and height of the pictures")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input closes")
    options = parser.parse_args()
    with _Server(options.host, options.port, options.delay, options.pixels) as server:
        print(f"http://{options.host}:{server.server_address[1]}", flush=True)
        if options.with_parent:  # a parent that is killed closes it, so no server is left behind
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
