"""Other processes that work on a run, for tests of stages that follow them: each pause of a stage is one step."""

from collections.abc import Callable, Sequence

import pytest

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import upstream
from lotlip_data.synthetic.scenes import SPLITS
from tests.pipeline import run_fixture


class Others:
    """What other processes do, step by step. A stage that waits after the last step fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps: list[Callable[[], object]] = []
        monkeypatch.setattr(upstream, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(upstream, "LISTING_SHARE", 0)
        monkeypatch.setattr(upstream, "pause", lambda seconds: self.go_on())

    def do(self, *steps: Callable[[], object]) -> None:
        self._steps += steps

    def go_on(self) -> None:
        assert self._steps, "the stage waits, but nothing more will happen"
        self._steps.pop(0)()


def partition(run: Run, shards: int, images: int) -> None:
    """Commit a partition of the run, as the download does before its first shard."""
    counts = {"images": shards * images, "shards": shards, "samples_per_shard": images, "rows": shards * images}
    content = counts | {"duplicates": 0, "invalid": {}, "sources": {}}
    storage.create(run.plan, artifacts.encode_json(content))


def download(run: Run, shard: int, images: int, pixels: int = 32) -> None:
    """Commit the images of a shard."""
    run_fixture.write_images(run, shard, seeds(shard, images), pixels)


def seeds(shard: int, images: int) -> Sequence[int]:
    return [SPLITS["images"][shard * images + row] for row in range(images)]


def caption(run: Run, name: str, shard: int) -> None:
    """Commit the captions of a shard."""
    run_fixture.claim_captioner(run, name)
    run_fixture.write_captions(run, name, shard, run_fixture.captions_of(run, name, shard))
