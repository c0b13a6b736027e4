"""What keeps other sites and the texts of the web out of the page.

The server listens on loopback alone. A page of another site can still make a browser ask it, so it answers only to
loopback's names (which DNS rebinding cannot have), takes what changes something only from its own pages, computes
nothing that another site's page asks for, and tells the browser to load and run nothing but what comes from here. No
page has a script.

The page's server: on loopback, and nowhere else.
"""

import contextlib
import logging
import socket

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)

HOSTS = ["localhost", "127.0.0.1"]
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
)
POLICY = _POLICY + "frame-ancestors 'none'"
FRAMED_POLICY = _POLICY + "frame-ancestors 'self'"
"""Of what stands in a frame of our own pages."""
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""The report has its styles inside."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers do not tell the origin of our own forms
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Puts HEADERS on every answer that has none of its own, and refuses what another site's page sends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["type"] == "http" and not _is_wanted(scope, Headers(scope=scope)):
            app = PlainTextResponse("This can be asked for only by a page of this server. Open its address anew.", 403)
        await app(scope, receive, guarded)


def _is_wanted(scope: Scope, headers: Headers) -> bool:
    if scope["method"] not in ("GET", "HEAD"):
        return headers.get("origin") == f"http://{headers.get('host')}"
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):  # typed, or from here; no browser without it
        return True
    # A link from elsewhere may be followed to a page, but brings no question: those take seconds to answer.
    return headers.get("sec-fetch-dest") == "document" and not scope["query_string"]


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


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve on a socket of `listen` until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off")
    logger.info(f"view: http://{LOOPBACK}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
