"""A hub on loopback with dataset repositories, by the requests that huggingface_hub sends to publish files.

It implements: whoami, creation of repositories and branches, information, the tree with pages, pre-upload, LFS batches,
uploads and their verification, the check of a card, and commits. Contents are in memory. `faults` changes answers.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.web_server import serving

TOKEN = "hf_" + "T0ken" * 7
PAGE = 4
"""Entries of a page of a tree."""

Files = dict[str, tuple[bytes, bool]]
"""By path: the content, and whether it is a large file."""
Answer = tuple[int, Any, dict[str, str]]


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    return status, {} if body is None else body, {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Repository:
    """A dataset repository."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    """Name → commit."""
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: Files, message: str) -> str:
        self.messages.append(message)
        commit = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """The contents of a branch by path."""
        return {path: data for path, (data, _) in self.commits[self.branches[branch]].items()}

    def at(self, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class FakeDatasetHub:
    """The state of the hub, to look at and to change while it runs."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by sha256."""
    requests: list[str] = field(default_factory=list)
    """What was asked, such as `POST commit`."""
    faults: dict[str, list[Callable[[], Answer | None]]] = field(default_factory=dict)
    """By kind of request: what is called for the next ones in place of the hub, which goes on after None."""
    after: dict[str, Callable[[], Answer | None]] = field(default_factory=dict)
    """By kind of request: what is called before its answer is sent; a result replaces it."""
    role: str = "write"
    large: tuple[str, ...] = (".tar", ".parquet")
    """Endings of files that are stored as large ones."""
    ignored: tuple[str, ...] = ()
    """Endings of files that a .gitignore keeps out."""
    uploads: Counter[str] = field(default_factory=Counter)
    """Number of uploads by sha256."""

    def write(self, folder: Path, name: str, branch: str = "main") -> Path:
        """Write the files of a repository to a folder, as a clone has them."""
        for path, data in self.repositories[name].files(branch).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder

    def handle(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        method = "GET" if method == "HEAD" else method
        path = unquote(urlsplit(target).path)
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        for pattern, kind, handler in _ROUTES:
            if (match := re.fullmatch(pattern, path)) and kind.startswith(method):
                self.requests.append(kind)
                waiting = self.faults.get(kind, [])
                if waiting and (fault := waiting.pop(0)()):
                    return fault
                if not kind.endswith("object") and headers.get("Authorization") != f"Bearer {TOKEN}":
                    return answer(401, X_Error_Message="Invalid credentials in Authorization header")
                answered = handler(self, *match.groups(), query=query, body=body)
                return (kind in self.after and self.after[kind]()) or answered
        return answer(404, {"error": f"no such endpoint: {method} {path}"})

    def whoami(self, query: Any, body: bytes) -> Answer:
        return answer(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": self.role}}})

    def create(self, query: Any, body: bytes) -> Answer:
        content = json.loads(body)
        name = f"{content['organization']}/{content['name']}"
        if content["type"] != "dataset" or content["organization"] == "others":
            return answer(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        if content["organization"] == "taken" or name in self.repositories:
            return answer(409, {"error": "You already created this repo"})
        repository = self.repositories[name] = Repository(content.get("visibility") == "private")
        repository.add("main", {".gitattributes": (b"*.tar filter=lfs\n", False)}, "initial commit")
        return answer(200, {"url": f"{self.url}/datasets/{name}", "name": name, "id": "1"})

    def info(self, name: str, revision: str | None, query: Any, body: bytes) -> Answer:
        if name not in self.repositories:
            return answer(404, X_Error_Code="RepoNotFound")
        repository = self.repositories[name]
        if (commit := repository.at(revision or "main")) is None:
            return answer(404, X_Error_Code="RevisionNotFound")
        return answer(200, {"id": name, "sha": commit, "private": repository.private, "tags": [], "downloads": 0})

    def tree(self, name: str, revision: str, query: Any, body: bytes) -> Answer:
        if name not in self.repositories or (commit := self.repositories[name].at(revision)) is None:
            return answer(404, X_Error_Code="RevisionNotFound")
        entries = [_entry(path, *content) for path, content in sorted(self.repositories[name].commits[commit].items())]
        start = int(query.get("cursor", 0))
        following = f'<{self.url}/api/datasets/{name}/tree/{revision}?recursive=true&cursor={start + PAGE}>; rel="next"'
        return answer(
            200, entries[start : start + PAGE], **({"Link": following} if len(entries) > start + PAGE else {})
        )

    def file(self, name: str, revision: str, path: str, query: Any, body: bytes) -> Answer:
        commit = self.repositories[name].at(revision)
        if commit is None or path not in self.repositories[name].commits[commit]:
            return answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit or "")
        data, is_large = self.repositories[name].commits[commit][path]
        return answer(200, data, ETag=f'"{_oid(data, is_large)}"', X_Repo_Commit=commit)

    def preupload(self, name: str, revision: str, query: Any, body: bytes) -> Answer:
        repository = self.repositories[name]
        if (commit := repository.at(revision)) is None:
            return answer(404, X_Error_Code="RevisionNotFound")
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            current = repository.commits[commit].get(path)
            mode = "lfs" if path.endswith(self.large) else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": path.endswith(self.ignored or "\0")}
            files.append(entry | ({"oid": _oid(*current)} if current else {}))
        return answer(200, {"files": files})

    def batch(self, name: str, query: Any, body: bytes) -> Answer:
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.url}/objects/{item['oid']}?X-Amz-Signature=secret-signature"},
                "verify": {"href": f"{self.url}/verify"},
            }
            objects.append(item if item["oid"] in self.objects else item | {"actions": actions})
        return answer(200, {"transfer": "basic", "objects": objects})

    def put(self, sha256: str, query: Any, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != sha256:
            return answer(400, {"error": "the content is another one"})
        self.objects[sha256] = body
        self.uploads[sha256] += 1
        return answer(200)

    def verify(self, query: Any, body: bytes) -> Answer:
        content = json.loads(body)
        return answer(200 if len(self.objects.get(content["oid"], b"")) == content["size"] else 404)

    def validate(self, query: Any, body: bytes) -> Answer:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return answer(400, {"errors": [{"message": "the front matter is missing"}], "warnings": []})
        return answer(200, {"errors": [], "warnings": []})

    def branch(self, name: str, branch: str, query: Any, body: bytes) -> Answer:
        repository = self.repositories[name]
        repository.branches.setdefault(branch, repository.branches["main"])
        return answer(200)

    def commit(self, name: str, branch: str, query: Any, body: bytes) -> Answer:
        repository = self.repositories[name]
        (header, *items) = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") != repository.branches[branch]:
            return answer(412, {"error": "The branch was updated since you opened this page"})
        files = dict(repository.commits[repository.branches[branch]])
        for item in items:
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"]), False
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]], True
            else:
                assert item["key"] == "deletedFile", item
                del files[value["path"]]
        oid = repository.add(branch, files, header["value"]["summary"])
        return answer(200, {"commitUrl": f"{self.url}/datasets/{name}/commit/{oid}", "commitOid": oid})


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    (r"/api/whoami-v2", "GET whoami", FakeDatasetHub.whoami),
    (r"/api/repos/create", "POST create", FakeDatasetHub.create),
    (r"/api/validate-yaml", "POST validate", FakeDatasetHub.validate),
    (rf"/api/datasets/{_REPO}(?:/revision/(.+))?", "GET info", FakeDatasetHub.info),
    (rf"/api/datasets/{_REPO}/tree/([^/]+)", "GET tree", FakeDatasetHub.tree),
    (rf"/datasets/{_REPO}/resolve/([^/]+)/(.+)", "GET file", FakeDatasetHub.file),
    (rf"/api/datasets/{_REPO}/preupload/(.+)", "POST preupload", FakeDatasetHub.preupload),
    (rf"/api/datasets/{_REPO}/branch/(.+)", "POST branch", FakeDatasetHub.branch),
    (rf"/api/datasets/{_REPO}/commit/(.+)", "POST commit", FakeDatasetHub.commit),
    (rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", "POST batch", FakeDatasetHub.batch),
    (r"/objects/([0-9a-f]{64})", "PUT object", FakeDatasetHub.put),
    (r"/verify", "POST verify", FakeDatasetHub.verify),
]


def _oid(data: bytes, is_large: bool) -> str:
    """The id that pre-upload gives to a file: the sha256 of a large one, git's id of another one."""
    return hashlib.sha256(data).hexdigest() if is_large else _git_id(data)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes, is_large: bool) -> dict[str, Any]:
    """An entry of a tree."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if not is_large:
        return entry | {"oid": _git_id(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    return entry | {"oid": _git_id(pointer), "lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}}


@contextmanager
def fake_dataset_hub() -> Iterator[FakeDatasetHub]:
    """Start the hub; its `url` is the endpoint."""
    hub = FakeDatasetHub()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = self._body()
            with lock:
                status, content, headers = hub.handle(self.command, self.path, self.headers, body)
            if status == 0:  # a lost connection
                self.close_connection = True
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(data)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub
