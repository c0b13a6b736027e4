"""An S3 server on loopback (moto) that can inject faults: `python -m tests.faults.s3 FAULTS`.

FAULTS is a JSON file that can change at any time, with the keys:
  refuse  share of requests that are answered 503 SlowDown
  lose    share of requests that are executed and then answered 500 InternalError
  drop    share of requests whose connection is closed, half of them before and half after they are executed
  delay   maximum delay of an answer, in seconds
  unconditional  if not 0, conditional requests are executed without their condition, as some servers do
The nth request has the same fault in every run. Requests are served one at a time, since a conditional put is atomic on
S3 and not in moto. When the server stops, it writes the number of each fault to FAULTS + ".log".
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
"""With a share of 0.05 each, every fault occurs twice in the first 50 requests, and no four of 3,000 in a row fail."""
_ANSWERS = {"refuse": ("503 Slow Down", "SlowDown"), "lose": ("500 Internal Server Error", "InternalError")}

Start = Callable[..., Any]


class FaultInjector:
    """WSGI middleware that injects faults. `counts` has the number of each fault."""

    def __init__(self, app: Callable[..., Iterable[bytes]], faults: Path) -> None:
        self._app, self._faults, self._lock = app, faults, threading.Lock()
        self._random = random.Random(SEED)
        self.counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        shares = json.loads(self._faults.read_text()) if self._faults.exists() else {}
        time.sleep(random.random() * shares.get("delay", 0))
        if shares.get("unconditional"):
            environ.pop("HTTP_IF_NONE_MATCH", None)
        fault = self._draw(shares)
        if fault == "refuse" or fault == "drop before":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            with self._lock:
                answer: list[Any] = []
                body = b"".join(self._app(environ, lambda *arguments: answer.extend(arguments)))
        if fault is None:
            start(*answer)
            return [body]
        if fault.startswith("drop"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("dropped on purpose")
        status, code = _ANSWERS[fault]
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>".encode()]

    def _draw(self, shares: dict[str, float]) -> str | None:
        chance = self._random.random()
        for fault in ("refuse", "lose", "drop"):
            if (chance := chance - shares.get(fault, 0)) < 0:
                self.counts[fault] += 1
                return fault if fault != "drop" else random.choice(["drop before", "drop after"])
        return None


@contextmanager
def s3_server(folder: Path, **faults: float) -> Iterator[dict[str, str]]:
    """Start the server in its own process, with an empty bucket. Yields the environment variables that select it."""
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
        server.communicate()  # closes its standard input, at which it stops


def fault_counts(folder: Path) -> Counter[str]:
    """The number of each fault that a stopped server injected."""
    return Counter(json.loads((folder / "faults.json.log").read_text()))


def main() -> None:
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    faults = Path(sys.argv[1])
    app = FaultInjector(DomainDispatcherApplication(create_backend_app), faults)
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
