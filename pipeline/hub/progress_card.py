"""Shows the progress of a run on the card of a repository, and in a file for a badge, while the run goes on.

The progress stands between two comments of the card. The rest of a card that exists stays. `publish` replaces the card
by that of the dataset.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

from lotlip_data.manifests.formats.dataset_index import CARD
from lotlip_data.manifests.manifest import Manifest, frozen
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.wording import duration
from lotlip_data.pipeline.hub.card import card_text
from lotlip_data.pipeline.hub.changes import PROGRESS
from lotlip_data.pipeline.hub.errors import BranchMoved, Unavailable
from lotlip_data.pipeline.hub.repository import MAIN, Repository, addition
from lotlip_data.pipeline.reporting.next_step import find_not_started
from lotlip_data.pipeline.reporting.status import RunStatus, get_status
from lotlip_data.pipeline.reporting.status_table import format_table

logger = logging.getLogger(__name__)

START, END = "<!-- progress of the run -->", "<!-- end of the progress -->"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    """`download`, `captions` or `dataset`."""
    share: float
    table: list[str]

    @property
    def is_complete(self) -> bool:
        return self.stage == "dataset" and self.share == 1

    @property
    def message(self) -> str:
        return "complete" if self.is_complete else f"{self.stage} {self.share:.0%}"

    def badge(self) -> bytes:
        """The file that a badge of shields.io reads (https://shields.io/badges/endpoint-badge)."""
        colour = "brightgreen" if self.is_complete else "blue"
        badge = {"schemaVersion": 1, "label": "lotlip-data", "message": self.message, "color": colour}
        return json.dumps(badge).encode()


def read_progress(run: Run, manifest: Manifest) -> Progress:
    """The progress of a run, from a few listings."""
    status = get_status(run)
    status["texts"] = {captioner: list(names) for captioner, names in manifest.several_texts.items()}
    status["not_started"] = find_not_started(manifest, status)
    stage, share = _stage(status)
    return Progress(stage, share, format_table(status))


def _stage(status: RunStatus) -> tuple[str, float]:
    """The first stage that is not complete, and which share of it is done, rounded down to whole percents.

    Captions count by shards.
    """
    download = status["download"]
    if download is None and not status["images"]:
        return "download", 0.0
    if download is not None and download["left"]:
        return "download", _share(download["tried"], download["urls"])
    waiting = status.get("not_started", {}).get("recaption", [])
    done = sum(status["captioned"].values())
    total = status["fetched"] * (len(status["captioned"]) + len(waiting))
    if done < total:
        return "captions", _share(done, total)
    return "dataset", float(status["dataset"])


def _share(done: int, total: int) -> float:
    return 100 * done // max(1, total) / 100


def publish_progress(
    run: Run,
    name: str,
    *,
    private: bool = False,
    branch: str = MAIN,
    every: float | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> tuple[str, Progress]:
    """Write the progress of a run to the card of a repository.

    Args:
        run: The run.
        name: The repository as ORG/NAME. It is created where it does not exist.
        private: Create the repository as a private one.
        branch: The branch, created from the main one where it does not exist.
        every: Minutes after which it is written again, until the dataset exists. Default: once.
        wait: Waits for a number of seconds.

    Returns:
        The URL of the repository, and the progress that was written last.
    """
    manifest = frozen(run)
    repository = Repository(name, branch)
    repository.check_token()
    state = repository.find()
    repository.check_private(state, private)
    repository.prepare(state, private)
    while True:
        progress = read_progress(run, manifest)
        try:
            _write(repository, progress, manifest, branch)
            if every is None or progress.is_complete:
                return repository.url, progress
        except (Unavailable, BranchMoved) as error:
            if every is None:
                raise
            logger.warning(f"{error}. The next try is in {duration(60 * every)}")
        wait(60 * every)


def _write(repository: Repository, progress: Progress, manifest: Manifest, branch: str) -> None:
    head = repository.head()
    card = repository.read(CARD, head)
    badge = f"{repository.url}/resolve/{quote(branch, safe='')}/{PROGRESS}"
    text = card_text(card, f"{CARD} of {repository.url}") if card else _first_card(manifest)
    new = with_progress(text, progress, badge).encode()
    if new != card:
        additions = [addition(CARD, new), addition(PROGRESS, progress.badge())]
        repository.commit(additions, [], f"Progress: {progress.message}", head)


def with_progress(card: str, progress: Progress, badge: str) -> str:
    """A card with the progress in place of an earlier one, otherwise below the front matter.

    Args:
        card: The card.
        progress: The progress.
        badge: The URL of the file that the badge reads.
    """
    image = f"![{progress.message}](https://img.shields.io/endpoint?url={quote(badge, safe='')})"
    block = "\n".join([START, "", image, "", "```text", *progress.table, "```", "", END])
    before, start, rest = card.partition(START)
    _, end, after = rest.partition(END)
    if start and end:
        return before + block + after
    front, closing, body = card.partition("\n---\n")
    return f"{front}{closing}\n{block}\n{body}" if closing else f"{block}\n\n{card}"


def _first_card(manifest: Manifest) -> str:
    """The card of a repository that has no dataset yet."""
    front_matter: dict[str, Any] = {
        "pretty_name": manifest.name,
        "language": ["en"],
        "tags": ["image-text", "long-captions"],
        "viewer": False,
    }
    return (
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n\n# {manifest.name}\n\nThis dataset is being made.\n"
    )
