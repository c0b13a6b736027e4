"""What scoring will take: hours and bytes of each scorer, each with the assumptions that it is based on.

    task-hours = images to score / (images per second of one task) / 3600

The speed of a task is that of the run's scored shards, or is measured on this machine. There is no estimate from the
size of a model: most of the time can go into reading images.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.manifests.wording import count
from lotlip_data.manifests.wording import size as format_bytes
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.planning.storage import estimate_images
from lotlip_data.pipeline.scoring.base import RAW, ImageText, ScoredImage, Scorer
from lotlip_data.pipeline.scoring.registry import load_scorer
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import render, sample_scene

SUB_CAPTIONS = 6.16
"""Sub-captions of a long text (paper, Table 6)."""
SCENE_PIXELS = 512
WARM_UP_IMAGES = 8
ROW_BYTES = 60
"""Of an image in a file of scores, besides its scores: its identity, which does not compress."""
SCORE_BYTES = 4
SORT_BYTES = 32
"""Disk per text of a scorer that compares all texts: 16 bytes in each of two steps."""


@dataclass(frozen=True)
class ScorerCost:
    """The cost of one scorer, as `plan --json` prints it. A number that is not known is None."""

    name: str
    images: int
    """Images that remain to be scored."""
    done: int
    images_per_s: float | None
    """Of one task."""
    speed: str
    """Where `images_per_s` comes from."""
    task_hours: float | None
    stored_bytes: int
    scratch_bytes: int
    """Disk of the driver while it compares all images or texts."""


@dataclass(frozen=True)
class ScoringPlan:
    """The cost of all scorers."""

    scorers: list[ScorerCost]
    assumes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_scores(manifest: Manifest, images: int, run: Run | None = None, measure: int = 0) -> ScoringPlan:
    """Estimate what the scorers of a manifest take.

    Args:
        manifest: The manifest.
        images: Number of images; used where `run` does not say how many it will have.
        run: An existing run, whose scored shards count.
        measure: Score this many synthetic images here with each scorer whose speed is not known. 0: do not.

    Raises:
        UserError: A scorer is unknown, or cannot score on this machine.
    """
    images = ((estimate_images(run) if run else None) or (images, ""))[0]
    captioners = len([*manifest.captioner_names, *manifest.imported_names])
    texts = 1 + captioners * (1 + SUB_CAPTIONS)
    costs = []
    for entry in manifest.scores:
        scorer = load_scorer(entry)
        records = ledger.recorded(run.score_ledger(entry.label)).values() if run else []
        done = min(images, sum(record.rows for record in records))
        images_per_s = ledger.throughput(records).images_per_s
        speed = "measured in the run"
        if images_per_s is None and measure:
            images_per_s, speed = (
                _measure(entry, scorer, captioners, measure),
                f"measured with {count(measure, 'image')}",
            )
        scores = texts if scorer.scores == "texts" else 1
        costs.append(
            ScorerCost(
                name=entry.label,
                images=images - done,
                done=done,
                images_per_s=images_per_s,
                speed=speed if images_per_s else "unknown; measure it with --time",
                task_hours=(images - done) / images_per_s / 3600 if images_per_s else None,
                stored_bytes=round(images * (ROW_BYTES + SCORE_BYTES * scores)),
                scratch_bytes=round(images * SORT_BYTES * scores) if hasattr(scorer, "combine") else 0,
            )
        )
    assumes = [
        f"scores: {count(captioners, 'long text')} per image with {SUB_CAPTIONS:g} sub-captions each, and one raw text",
        f"scores: {ROW_BYTES} bytes per image and {SCORE_BYTES} per score; texts that repeat need less disk to compare",
    ]
    return ScoringPlan(costs, assumes if costs else [])


def format_text(plan: ScoringPlan) -> list[str]:
    """The lines that `plan` prints."""
    lines = []
    for cost in plan.scorers:
        done = f" ({cost.done:,} done)" if cost.done else ""
        scratch = f", {format_bytes(cost.scratch_bytes)} of local disk to compare" if cost.scratch_bytes else ""
        stored = f"{format_bytes(cost.stored_bytes)} of scores{scratch}"
        lines.append(f"score        {cost.name}: {count(cost.images, 'image')}{done}, {stored}")
        if cost.images_per_s is None or cost.task_hours is None:
            lines.append(f"             speed {cost.speed}")
        else:
            hours = f"{cost.task_hours:,.2f} hours of one task"
            lines.append(f"             {cost.images_per_s:,.3g} images/s per task ({cost.speed}): {hours}")
    return lines


def _measure(entry: ScorerEntry, scorer: Scorer, captioners: int, number: int) -> float:
    """Images per second of one task of a scorer on this machine. Raises UserError if it cannot score."""
    try:
        list(_run(scorer, list(_scenes(WARM_UP_IMAGES, captioners))))
        images = list(_scenes(number, captioners))
        start = time.perf_counter()
        list(_run(scorer, images))
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        raise UserError(f"--time: scorer {entry.label} cannot score on this machine: {error}") from error
    return number / max(1e-9, time.perf_counter() - start)


def _run(scorer: Any, images: Sequence[ScoredImage]) -> Iterator[Any]:
    """Score images, or survey them, which takes the time of a scorer that compares all images."""
    if hasattr(scorer, "survey"):
        yield scorer.survey(images)
    else:
        yield from scorer.score(images)


def _scenes(number: int, captioners: int) -> Iterator[ScoredImage]:
    for seed in range(number):
        scene = sample_scene(seed)
        content = io.BytesIO()
        render(scene, SCENE_PIXELS).save(content, "JPEG", quality=95)
        texts = [ImageText(RAW, raw_text(scene))]
        for index in range(captioners):
            text = long_text(scene, WRITERS[index % len(WRITERS)])
            texts.append(ImageText(f"captioner-{index}", text, tuple(subcaptions.split(text))))
        yield ScoredImage(f"{seed:032x}", f"{seed:064x}", content.getvalue(), tuple(texts), f"http://x.test/{seed}.jpg")
