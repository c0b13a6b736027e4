"""The page's server: it listens on loopback only, and keeps other sites and text from the web out of the page.

A page of another site can still make a browser send requests to loopback. Therefore the server answers only requests
addressed to loopback's names (DNS rebinding uses another name), accepts changes only from its own pages, and computes
nothing for another site's page. The browser may load from this server only. The only script that it may run is the file
`/view.js` of this server: no script in a page, no attribute that runs one, and no text that becomes one.
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

LOOPBACK = "127.0.0.1"
ALLOWED_HOSTS = ["localhost", LOOPBACK]
SHUTDOWN_SECONDS = 2
"""After Ctrl-C, responses that a client has not read by then are cut off."""
BACKLOG_CONNECTIONS = 128
"""Connections that may wait: a page requests all its images at once, perhaps while models are still loading."""
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
)
POLICY = _POLICY + "script-src 'self'; require-trusted-types-for 'script'; frame-ancestors 'none'"
FRAMED_POLICY = _POLICY + "frame-ancestors 'self'"
"""For documents that appear in a frame of this server's own pages."""
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""For the report, whose styles are inline."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send `Origin: null` with this server's own forms
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class RequestGuard:
    """ASGI middleware: adds HEADERS to every response that lacks them, and rejects requests from other sites' pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["type"] == "http" and not _is_allowed(scope, Headers(scope=scope)):
            app = PlainTextResponse("Only pages of this server may request this. Open its address in a new tab.", 403)
        await app(scope, receive, send_with_headers)


def _is_allowed(scope: Scope, headers: Headers) -> bool:
    if scope["method"] not in ("GET", "HEAD"):
        return headers.get("origin") == f"http://{headers.get('host')}"
    # "none" is an address that the user entered. A client that does not send the header is not a browser.
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    # A link on another site may lead to a page, but without a query, because answering a query takes seconds.
    return headers.get("sec-fetch-dest") == "document" and not scope["query_string"]


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: The port; 0 means any free port.

    Raises:
        UserError: The port is in use or not allowed.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        # With SO_REUSEADDR two processes may bind the same port; only one of them can listen on it.
        listening.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port}: not available ({error}); use another port, or --port 0 for any free one"
        ) from error
    return listening


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve an application on a socket from `listen` until Ctrl-C."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    logger.info(f"view: http://{LOOPBACK}:{listening.getsockname()[1]}/ (press Ctrl-C to stop)")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
