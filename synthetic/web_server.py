"""A server that answers like the web: latency with a slow tail, dead hosts, photographs, and one host above all others.

    python -m lotlip_data.synthetic.web_server

The hosts are addresses of the loopback network, so every process of this machine reaches them without a name server.
What a URL gives, and after how long, is a pure function of the number in its path, so that two downloads of a list can
be compared. Pictures look like noise at all scales with edges, and have the statistics of photographs that matter to a
decoder: bits per pixel, and how strong the finest detail is.
"""

import argparse
import asyncio
import contextlib
import io
import random
import re
import socket
import sys
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from PIL import Image

from lotlip_data.synthetic.server_process import ServerProcess

HOSTS = 40
"""Hosts that answer."""

DOMINANT_SHARE = 0.5
"""Share of the URLs on the first host, as a list of YFCC100M has nearly all of its URLs on one."""

DEAD_SHARE = 0.05
"""Share of the URLs on dead hosts: a third of each kind of `dead_hosts`."""

DEAD_HOSTS = 12
"""Dead hosts of each kind."""

MEDIAN_SECONDS, SPREAD = 0.3, 0.7
"""Time to the answer: log-normal, with this median and standard deviation of its logarithm."""

SLOW_SHARE, SLOW_SECONDS = 0.01, (2.0, 8.0)
"""Share of answers that take longer, and how long they take."""

MEGAPIXELS = (0.2, 4.0)
"""Sizes of the pictures, evenly spread."""

_SHAPES = ((4, 3), (3, 2), (3, 4), (16, 9), (1, 1), (4, 3))
_REQUEST = re.compile(rb"GET /(\d+)\.jpg ")


def live_host(number: int) -> str:
    """The address of a host that answers."""
    return f"127.1.0.{number + 1}"


def refusing_host(number: int) -> str:
    """The address of a host that refuses connections."""
    return f"127.2.0.{number + 1}"


def silent_host(number: int) -> str:
    """The address of a host that accepts connections and never answers."""
    return f"127.3.0.{number + 1}"


def unknown_host(number: int) -> str:
    """A name that does not resolve."""
    return f"gone-{number}.invalid"


ALL_HOSTS = (
    *map(live_host, range(HOSTS)),
    *map(refusing_host, range(DEAD_HOSTS)),
    *map(silent_host, range(DEAD_HOSTS)),
)
"""All addresses, for the setting `download.allow_hosts`."""


def host_of(number: int) -> str:
    """The host of a URL, by its number."""
    rng = random.Random(f"host {number}")
    if rng.random() < DEAD_SHARE:
        return rng.choice((refusing_host, silent_host, unknown_host))(rng.randrange(DEAD_HOSTS))
    if rng.random() < DOMINANT_SHARE / (1 - DEAD_SHARE):
        return live_host(0)
    return live_host(1 + int((HOSTS - 1) * rng.random() ** 2))  # few hosts have many URLs


def seconds_of(number: int) -> float:
    """The time to the answer of a URL, by its number."""
    rng = random.Random(f"seconds {number}")
    if rng.random() < SLOW_SHARE:
        return rng.uniform(*SLOW_SECONDS)
    return MEDIAN_SECONDS * rng.lognormvariate(0, SPREAD)


def photograph(seed: int, megapixels: float, shape: tuple[int, int]) -> bytes:
    """A picture as JPEG.

    Args:
        seed: Its seed.
        megapixels: Its size.
        shape: The proportions of width and height.
    """
    rng = np.random.default_rng(seed)
    scale = (megapixels * 1e6 / (shape[0] * shape[1])) ** 0.5
    size = round(shape[0] * scale), round(shape[1] * scale)
    sharpness = 2 ** rng.uniform(-2, 0.5)  # of a lens, and of what was in focus
    strengths = {256: 30, 128: 18, 64: 14, 32: 11, 16: 8, 8: 6, 4: 4 * sharpness, 2: 2.5 * sharpness**1.5}
    brightness = 128 + sum(strength * _noise(rng, size, cell) for cell, strength in strengths.items())
    brightness += 25 * cv2.GaussianBlur(np.sign(_noise(rng, size, 128)), (0, 0), 0.7 + 0.5 / sharpness)
    pixels = np.empty((size[1], size[0], 3), np.float32)
    pixels[..., 0] = brightness
    for channel in (1, 2):
        pixels[..., channel] = 128 + 14 * _noise(rng, size, 128) + 6 * _noise(rng, size, 32)
    stream = io.BytesIO()
    options = {"quality": int(rng.integers(80, 94)), "progressive": bool(rng.random() < 0.25)}
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "YCbCr").save(stream, "JPEG", **options)
    return stream.getvalue()


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Noise of unit strength whose grains have about `cell` pixels."""
    grains = rng.standard_normal((size[1] // cell + 3, size[0] // cell + 3), np.float32)
    enlarged = cv2.resize(grains, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return enlarged[cell : cell + size[1], cell : cell + size[0]]


def photographs(count: int) -> list[bytes]:
    """Pictures of all sizes."""
    cv2.setNumThreads(1)
    sizes = np.linspace(*MEGAPIXELS, count)
    return [photograph(seed, float(size), _SHAPES[seed % len(_SHAPES)]) for seed, size in enumerate(sizes)]


class WebServer(ServerProcess):
    """A context manager that runs the server in its own process.

    Args:
        pictures: Number of different pictures.

    Raises:
        RuntimeError: The server does not start.
    """

    def __init__(self, pictures: int = 24) -> None:
        self.port = 0
        """The port of all hosts; 0 before the block is entered."""
        super().__init__("web server", "web_server", "--pictures", str(pictures))

    def started(self, line: str) -> None:
        self.port = int(line)

    def urls(self, numbers: Sequence[int]) -> list[str]:
        """The URLs of these numbers."""
        return [f"http://{host_of(number)}:{self.port}/{number}.jpg" for number in numbers]


async def _respond(bodies: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        head = await reader.readuntil(b"\r\n\r\n")
        if match := _REQUEST.match(head):
            number = int(match[1])
            await asyncio.sleep(seconds_of(number))
            body = bodies[number % len(bodies)]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n")
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()


def _listen() -> tuple[list[socket.socket], list[socket.socket]]:
    """The sockets of the hosts that answer, and of those that do not. They have one port."""
    while True:
        first = socket.create_server((live_host(0), 0), backlog=1024)
        port, sockets = first.getsockname()[1], [first]
        try:
            for address in (*map(live_host, range(1, HOSTS)), *map(silent_host, range(DEAD_HOSTS))):
                sockets.append(socket.create_server((address, port), backlog=1024))
        except OSError:  # another program has the port at one of the addresses
            for each in sockets:
                each.close()
        else:
            return sockets[:HOSTS], sockets[HOSTS:]


async def _serve(pictures: int, with_parent: bool) -> None:
    bodies = photographs(pictures)
    live, silent = _listen()
    async with contextlib.AsyncExitStack() as stack:
        for listening in live:
            await stack.enter_async_context(await asyncio.start_server(partial(_respond, bodies), sock=listening))
        print(live[0].getsockname()[1], flush=True)
        if with_parent:  # the pipe closes if the parent is killed, so no server stays behind
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    for listening in silent:
        listening.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve photographs as the web does.")
    parser.add_argument("--pictures", type=int, default=24, help="number of different pictures (default: %(default)s)")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input closes")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.pictures, options.with_parent))


if __name__ == "__main__":
    main()
