"""An S3 server on loopback, moto's, as it is or with an object store's bad days: `python -m tests.faults.s3 FAULTS`.

FAULTS is a JSON file that may change at any time: `refuse`, the share of requests that are answered 503 SlowDown;
`lose`, the share that are done and then answered 500 InternalError; `drop`, the share whose connection ends, half of
them before anything is done and half after; `delay`, the most seconds that an answer waits. The fate of the nth request
that comes in is the same every time. Requests are served one at a time, since a conditional put is atomic on S3 and
moto's is not. A line `count` of refused, lost and dropped requests stands in FAULTS + ".log" at the end.
"""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "lotlip"
SECRET = "an-unlikely-secret-7f3a"
SEED = 4
"""With a share of 0.05 each, the first 50 requests meet every fault twice, and no four of 3,000 in a row meet one."""
_ANSWERS = {"refuse": ("503 Slow Down", "SlowDown"), "lose": ("500 Internal Server Error", "InternalError")}

Start = Callable[..., Any]


class BadDays:
    """WSGI middleware; `counts` has how often each fault was dealt."""

    def __init__(self, app: Callable[..., Iterable[bytes]], faults: Path) -> None:
        self._app, self._faults, self._lock = app, faults, threading.Lock()
        self._fates = random.Random(SEED)
        self.counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        told = json.loads(self._faults.read_text()) if self._faults.exists() else {}
        time.sleep(random.random() * told.get("delay", 0))
        fault = self._draw(told)
        if fault == "refuse" or fault == "drop before":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            with self._lock:
                answer: list[Any] = []
                body = b"".join(self._app(environ, lambda *given: answer.extend(given)))
        if fault is None:
            start(*answer)
            return [body]
        if fault.startswith("drop"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("dropped on purpose")
        status, code = _ANSWERS[fault]
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>".encode()]

    def _draw(self, told: dict[str, float]) -> str | None:
        chance = self._fates.random()
        for fault in ("refuse", "lose", "drop"):
            if (chance := chance - told.get(fault, 0)) < 0:
                self.counts[fault] += 1
                return fault if fault != "drop" else random.choice(["drop before", "drop after"])
        return None


@contextmanager
def s3_server(folder: Path, **faults: float) -> Iterator[dict[str, str]]:
    """The server in a process of its own with an empty bucket; gives the environment that leads to it."""
    path = folder / "faults.json"
    path.write_text("{}")
    command = [sys.executable, "-m", "tests.faults.s3", str(path)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    endpoint = server.stdout.readline().strip()
    assert endpoint, "the server did not start"
    try:
        path.write_text(json.dumps(faults))
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.communicate()  # its standard input closes, and it stops


def dealt(folder: Path) -> Counter[str]:
    """How often a server that has stopped dealt each fault."""
    return Counter(json.loads((folder / "faults.json.log").read_text()))


def main() -> None:
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    faults = Path(sys.argv[1])
    app = BadDays(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=BUCKET)
    print(endpoint, flush=True)
    sys.stdin.read()  # until the parent closes it, or is killed
    faults.with_name(faults.name + ".log").write_text(json.dumps(app.counts))
    os._exit(0)


if __name__ == "__main__":
    main()
