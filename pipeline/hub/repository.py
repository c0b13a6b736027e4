"""One dataset repository on the Hugging Face Hub, through huggingface_hub.

The library repeats most requests after transient errors; `Repository` repeats all. Its log lines can have signed URLs,
so they are shown without, and its progress bars are not shown.
"""

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lotlip_data.manifests.checkpoints.hub import endpoint
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.wording import duration
from lotlip_data.pipeline.hub import errors
from lotlip_data.pipeline.hub.errors import BranchMoved, Unavailable, explain

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

MAIN = "main"
ATTEMPTS = 4
"""Number of times that a request is tried."""
LONGEST_WAIT = 900.0
"""Seconds to wait at most where the Hub limits requests; a longer time is an error that names it."""
SILENCE_SECONDS = 300.0
"""Time without a byte from the Hub after which a request has failed. The library would wait for ever."""
_TYPE = "dataset"
_PATH = re.compile(r"(https?://[^/\s'\"]+)/[^\s'\"]*")
_CLIENTS = ("httpx", "httpx2")
"""The HTTP clients of the library, by release, which log each request with its signed URL."""


@dataclass(frozen=True)
class State:
    """A repository that exists."""

    private: bool
    commit: str | None
    """The last commit of the branch; None if there is no such branch."""


def addition(path: str, content: Path | bytes, digest: Digest | None = None) -> Any:
    """The operation of a commit that adds a file.

    Args:
        path: In the repository.
        content: A local file, or its content.
        digest: Its digest, so that the file is not read to compute it.
    """
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path, content)
    if digest is not None:
        operation.upload_info.sha256 = bytes.fromhex(digest.sha256)
    return operation


class Repository:
    """A branch of a dataset repository.

    Args:
        name: ORG/NAME.
        branch: The branch to publish on.

    Raises:
        UserError: There is no token, or the name is none of a repository.
    """

    def __init__(self, name: str, branch: str = MAIN) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        self.name, self._branch = name, branch
        try:
            validate_repo_id(name if name.count("/") == 1 else "")
        except HFValidationError as error:
            raise explain(error, name) or error from None
        if (token := get_token()) is None:
            raise errors.no_token()
        self._api = HfApi(token=token, library_name="lotlip-data")

    @property
    def url(self) -> str:
        return f"{endpoint()}/datasets/{self.name}"

    def check_token(self) -> None:
        """Raise UserError if the Hub rejects the token, or if the token may only read."""
        user = self._call(self._api.whoami)
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise errors.read_only_token()

    def find(self) -> State | None:
        """The repository; None if the Hub shows none of this name to this token."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def ask(revision: str | None) -> Any:
            try:
                return self._api.dataset_info(self.name, revision=revision)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None

        branch = self._call(ask, self._branch)
        info = branch or self._call(ask, None)
        return info and State(bool(info.private), branch and branch.sha)

    def prepare(self, state: State | None, private: bool) -> None:
        """Create the repository and the branch where they do not exist.

        Args:
            state: The result of `find`.
            private: Create the repository as a private one.
        """
        if state is None:
            try:
                self._call(self._api.create_repo, self.name, repo_type=_TYPE, private=private)
            except UserError:  # perhaps it exists now: the answer was lost, or another process was faster
                if (state := self.find()) is None:
                    raise
                self.check_private(state, private)
        if self._branch != MAIN and (state is None or state.commit is None):
            self._call(self._api.create_branch, self.name, branch=self._branch, repo_type=_TYPE, exist_ok=True)

    def check_private(self, state: State | None, private: bool) -> None:
        """Raise UserError if the repository is public although it shall be private."""
        if private and state and not state.private:
            raise UserError(
                f"{self.name}: exists and is public, so --private cannot keep the dataset private. Make it private in "
                f"its settings ({self.url}/settings), or choose another name."
            )

    def head(self) -> str:
        """The last commit of the branch. Raises UserError if there is no such repository or branch."""
        return str(self._call(self._api.dataset_info, self.name, revision=self._branch).sha)

    def files(self, commit: str | None = None) -> dict[str, Any]:
        """The files of a commit by path; by default those of the main branch."""

        def read() -> dict[str, Any]:
            tree = self._api.list_repo_tree(self.name, recursive=True, revision=commit or MAIN, repo_type=_TYPE)
            return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

        return self._call(read)

    def read(self, path: str, commit: str) -> bytes | None:
        """The content of a small file of a commit; None if it has none at this path."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        def download() -> bytes | None:
            with tempfile.TemporaryDirectory(prefix="lotlip-data-hub-") as folder:
                try:
                    file = self._api.hf_hub_download(
                        self.name, path, repo_type=_TYPE, revision=commit, local_dir=folder
                    )
                    return Path(file).read_bytes()
                except RemoteEntryNotFoundError:
                    return None

        return self._call(download)

    def upload(self, additions: Sequence[Any]) -> None:
        """Upload files, which are visible once a commit adds them. Their local copies are no longer needed then."""
        self._call(
            self._api.preupload_lfs_files, self.name, additions=additions, repo_type=_TYPE, revision=self._branch
        )
        for operation in additions:
            if operation.path_or_fileobj and not isinstance(operation.path_or_fileobj, bytes):
                # The Hub takes a small file of some repositories with the commit and not before.
                operation.path_or_fileobj = Path(operation.path_or_fileobj).read_bytes()

    def commit(self, additions: Sequence[Any], deleted: Sequence[str], message: str, parent: str) -> str:
        """Make one commit.

        Args:
            additions: Results of `addition`.
            deleted: Paths of files that are removed.
            message: The message of the commit.
            parent: The last commit of the branch.

        Returns:
            The commit, which is the last one of the branch now.

        Raises:
            BranchMoved: The branch has another last commit, perhaps this very one, if its answer was lost.
        """
        from huggingface_hub import CommitOperationDelete

        operations = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in deleted)]

        def send() -> str:
            made = self._api.create_commit(
                self.name,
                operations,
                commit_message=message,
                repo_type=_TYPE,
                revision=self._branch,
                parent_commit=parent,
            )
            return str(made.oid)

        def check_parent() -> None:
            if self.head() != parent:
                raise BranchMoved(f"{self.name}: the branch {self._branch} has changed meanwhile.")

        return self._call(send, before_retry=check_parent)

    def _call(
        self,
        function: Callable[..., Answer],
        *arguments: Any,
        before_retry: Callable[[], None] | None = None,
        **options: Any,
    ) -> Answer:
        """Call a function of the library, again after transient errors.

        Raises:
            UserError: The Hub refuses the request.
            Unavailable: It does not answer, or asks to wait for longer than LONGEST_WAIT.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _library():
                    return function(*arguments, **options)
            except Exception as error:
                explained = explain(error, self.name)
                if explained is None:
                    raise
                wait = _wait_after(explained, attempt)
                if wait is None:
                    raise explained from error
                logger.warning(f"{explained}. The next try is in {duration(wait)}")
            time.sleep(wait)
            if before_retry:
                before_retry()
        raise AssertionError("the last attempt returns or raises")


def _wait_after(error: Exception, attempt: int) -> float | None:
    """Seconds after which a request is worth another attempt; None if it is not."""
    if not isinstance(error, Unavailable) or attempt == ATTEMPTS:
        return None
    wait = float(2**attempt) if error.wait is None else error.wait
    return wait if wait <= LONGEST_WAIT else None


class _Relay(logging.Handler):
    """Logs the warnings of the library with the hosts of URLs alone, so that those of many files are of one kind."""

    def emit(self, record: logging.LogRecord) -> None:
        line = errors.readable(_PATH.sub(r"\1", record.getMessage()))
        logger.info(f"the Hub: {line}")


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """While this is entered, the library logs through `_Relay`, shows no bars, and waits no longer than it should."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        get_session,
    )

    library = logging.getLogger("huggingface_hub")
    handlers, propagate = list(library.handlers), library.propagate
    loggers = [library, *map(logging.getLogger, _CLIENTS)]
    levels = [each.level for each in loggers]
    had_bars = not are_progress_bars_disabled()
    library.handlers, library.propagate = [_Relay()], False
    for each in loggers:
        each.setLevel(logging.WARNING)
    if had_bars:
        disable_progress_bars()
    get_session().timeout = SILENCE_SECONDS
    try:
        yield
    finally:
        library.handlers, library.propagate = handlers, propagate
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if had_bars:
            enable_progress_bars()
