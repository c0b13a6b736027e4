"""The page's server: on loopback, and nowhere else."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from lotlip_data.manifests.errors import UserError

LOOPBACK = "127.0.0.1"
BACKLOG = 128
"""Connections that wait: a page asks for its images at once, perhaps while models are still loaded."""


def listen(port: int) -> socket.socket:
    """A socket that listens on loopback; port 0 is any free one. Raises UserError where the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen(BACKLOG)  # until then another may have the same port: SO_REUSEADDR lets both bind it
    except OSError as error:
        listening.close()
        raise UserError(f"port {port}: cannot be had ({error}); --port 0 takes any that is free") from error
    return listening


def serve(app: ASGIApp, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve on a socket of `listen` until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off")
    say(f"view: http://{LOOPBACK}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
