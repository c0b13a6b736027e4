"""The page's server: on loopback, and nowhere else."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from lotlip_data.manifests.errors import UserError

LOOPBACK = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 is any free one. Raises UserError where the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise UserError(f"port {port}: cannot be had ({error}); --port 0 takes any that is free") from error
    return listening


def serve(app: ASGIApp, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    with listen(port) as listening:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off"
        )
        say(f"view: http://{LOOPBACK}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
