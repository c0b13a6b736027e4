"""Publishes a run's dataset: compares, uploads what differs, and makes it visible with the last commit.

A killed publication is continued by the next one: what is committed is compared by sha256, and of what is uploaded
without a commit, the Hub takes no byte again.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import frozen
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.manifests.wording import count, plural, size
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.hub.changes import Changes, compare, names
from lotlip_data.pipeline.hub.contents import STATISTICS, Contents, read_contents, statistics
from lotlip_data.pipeline.hub.errors import BranchMoved
from lotlip_data.pipeline.hub.repository import MAIN, Repository, addition
from lotlip_data.pipeline.hub.transfer import Transfer
from lotlip_data.pipeline.reporting.next_step import find_stale
from lotlip_data.pipeline.reporting.status import get_status

logger = logging.getLogger(__name__)

ROUNDS = 4
"""Number of times that a repository is compared; others may commit to it at the same time."""
LISTED = 10
"""Paths that a summary lists; of the others it has the number."""


@dataclass
class Publication:
    """What was changed in a repository, or would be."""

    repository: str
    url: str
    dry_run: bool
    private: bool
    uploaded: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes by path."""
    deleted: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def add(self, changes: Changes) -> None:
        """Count changes."""
        self.uploaded |= {file.path: file.digest.bytes for file in changes.uploads}
        self.uploaded |= {path: len(data) for path, data in changes.documents.items()}
        self.deleted = sorted({*self.deleted, *changes.deleted})

    @property
    def has_changes(self) -> bool:
        """Whether anything was changed, or would be."""
        return bool(self.uploaded or self.deleted)

    def to_dict(self) -> dict[str, Any]:
        return {
            "repository": self.repository,
            "url": self.url,
            "private": self.private,
            "dry_run": self.dry_run,
            "files": len(self.uploaded),
            "bytes": sum(self.uploaded.values()),
            "uploaded": self.uploaded,
            "deleted": self.deleted,
            "commits": self.commits,
        }

    def lines(self) -> list[str]:
        """The changes for people."""
        visibility = "private" if self.private else "public"
        if not self.has_changes:
            return [f"publish: {self.url} ({visibility}) is up to date"]
        done = "would be uploaded to" if self.dry_run else "uploaded to"
        files, total = count(len(self.uploaded), "file"), size(sum(self.uploaded.values()))
        lines = [f"publish: {files} ({total}) {done} {self.url} ({visibility}): {names(list(self.uploaded), LISTED)}"]
        if self.deleted:
            removed = "would be removed" if self.dry_run else "removed"
            lines.append(
                f"publish: {count(len(self.deleted), 'file')} of an earlier dataset {removed}: "
                f"{names(self.deleted, LISTED)}"
            )
        return lines


def publish(
    run: Run,
    name: str,
    *,
    images: bool = True,
    private: bool = False,
    branch: str = MAIN,
    message: str | None = None,
    with_statistics: bool = True,
    dry_run: bool = False,
) -> Publication:
    """Make a dataset repository on the Hub hold the run's dataset.

    Args:
        run: The run.
        name: The repository as ORG/NAME. It is created where it does not exist.
        images: Whether the tars are published, which hold the images.
        private: Create the repository as a private one.
        branch: The branch, created from the main one where it does not exist.
        message: The message of the commits. Default: one that names the dataset.
        with_statistics: Also publish the statistics of the dataset, for which all of its texts are read.
        dry_run: Change nothing.

    Raises:
        UserError: The dataset is missing or damaged, or the Hub refuses the request.
        Unavailable: The Hub does not answer.
    """
    contents = read_contents(run, images)
    repository = Repository(name, branch)
    repository.check_token()
    state = repository.find()
    repository.check_private(state, private)
    for line in [*_outdated(run), *_licences(contents)]:
        logger.warning(line)
    publication = Publication(name, repository.url, dry_run, state.private if state else private)
    if dry_run:
        publication.add(compare(contents, repository.files(state.commit) if state else {}))
        return publication
    repository.prepare(state, private)
    message = message or f"Dataset {contents.description.summary['name']} of lotlip-data"
    _synchronise(run, contents, repository, publication, message, with_statistics)
    _warn_of_history(publication, contents)
    return publication


def _synchronise(
    run: Run, contents: Contents, repository: Repository, publication: Publication, message: str, with_statistics: bool
) -> None:
    """Compare and commit until the repository holds `contents`."""
    for _ in range(ROUNDS):
        head = repository.head()
        remote = repository.files(head)
        changes = compare(contents, remote)
        if with_statistics and STATISTICS not in contents.documents and (changes or STATISTICS not in remote):
            contents.documents[STATISTICS] = statistics(run, contents)
            changes = compare(contents, remote)
        elif not with_statistics and STATISTICS in remote and DATASET_JSON in changes.documents:
            changes.deleted.append(STATISTICS)  # they are of an earlier dataset
        if not changes:
            return
        if publication.commits and publication.commits[-1] == head:
            kept_out = names([*(file.path for file in changes.uploads), *changes.documents], LISTED)
            raise UserError(
                f"{repository.name}: its .gitignore keeps files of the dataset out: {kept_out}. Correct it and run the "
                "same command again."
            )
        publication.add(changes)
        try:
            _commit(run, repository, changes, publication, message, head)
        except BranchMoved as error:
            logger.info(f"{error} Comparing again")
    raise UserError(
        f"{repository.name}: others have committed to the branch {ROUNDS} times meanwhile. Let them end, and run the "
        "same command again."
    )


def _commit(
    run: Run, repository: Repository, changes: Changes, publication: Publication, message: str, head: str
) -> None:
    with scratch_folder("publish") as scratch, progress_bar("publish", len(changes.uploads), "file") as bar:
        transfer = Transfer(run, repository, scratch, bar)
        for commit in changes.commits():
            additions = transfer.upload(commit.uploads)
            additions += [addition(path, data) for path, data in commit.documents.items()]
            head = repository.commit(additions, commit.deleted, message, head)
            publication.commits.append(head)


def _outdated(run: Run) -> list[str]:
    """Lines that say in what the dataset is behind its run; none for a dataset without its run."""
    if not storage.exists(run.manifest):
        return []
    stale = find_stale(run, frozen(run), get_status(run))
    reasons = [entry["reason"] for entry in stale if entry["stage"] == "dataset"]
    if not reasons:
        return []
    return [
        f"{run.shards}: the dataset is outdated and is published as it is: {'; '.join(reasons)}. "
        f"`lotlip-data shard {run.url}` writes it again"
    ]


def _licences(contents: Contents) -> list[str]:
    """A line that names the licences of the images that are published."""
    if not contents.layout.images:
        return []
    sources = contents.description.sources
    licences = "; ".join(f"{source['name']}: {source['licence'] or 'licence not stated'}" for source in sources)
    samples = contents.description.summary["samples"]
    return [
        f"{count(samples, 'image')} {plural(samples, 'is')} published, under the licences of their sources "
        f"({licences}). Check that these allow it; --captions-only leaves the images out"
    ]


def _warn_of_history(publication: Publication, contents: Contents) -> None:
    """Say that images which are removed stay in the history of the repository."""
    removed = [path for path in publication.deleted if path.endswith(".tar")]
    if removed and not contents.layout.images:
        logger.warning(
            f"{publication.url}: the earlier commits still have {count(len(removed), 'tar')} with images. To remove "
            "them too, delete the repository and publish again"
        )
