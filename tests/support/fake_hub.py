"""A hub on loopback that serves local folders as models, by the paths that huggingface_hub asks for."""

import hashlib
import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.web_server import serving


@dataclass
class FakeHub:
    """The models of a hub, to change while it runs."""

    url: str = ""
    models: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """Hub id → commit and folder."""
    requests: list[str] = field(default_factory=list)
    """Paths of the requests so far."""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request."""
        self.requests.append(path)
        for name, (commit, folder) in self.models.items():
            if path.startswith(f"/api/models/{name}/tree/"):
                return 200, {}, json.dumps([_entry(file, folder) for file in _files(folder)]).encode()
            if path.startswith(f"/api/models/{name}"):
                return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": []}).encode()
            if path.startswith(f"/{name}/resolve/"):
                revision, _, file_name = path.removeprefix(f"/{name}/resolve/").partition("/")
                commit = revision if len(revision) == 40 else commit  # earlier commits stay, with the same files
                file = folder / file_name
                if file.is_file():
                    data = file.read_bytes()
                    return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Start the hub; its `url` is the endpoint."""
    hub = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _entry(file: Path, folder: Path) -> dict[str, object]:
    data = file.read_bytes()
    return {
        "type": "file",
        "path": str(file.relative_to(folder)),
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
