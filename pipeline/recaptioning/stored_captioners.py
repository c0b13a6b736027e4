"""The captioners that a run has a folder of: what each has made, and how to remove one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.formats.dataset_index import read_dataset_summary
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.captioners import by_captioner
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.results import RecaptionError


@dataclass(frozen=True)
class StoredCaptioner:
    """A captioner of a run."""

    name: str
    captioner: str | None
    """The captioner of the manifest that makes it, if that one makes several texts for each image."""
    id: str | None
    """Identity of its settings; None if they are missing."""
    kind: str | None
    model: str | None
    shards: int
    """Shards whose captions are committed."""
    images: int
    """Images with a caption, in committed shards and saved parts of others."""
    in_manifest: bool
    in_dataset: bool

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def stored_captioners(run: Run, manifest: Manifest) -> list[StoredCaptioner]:
    """The captioners that have a folder in the run, by name."""
    in_dataset = read_dataset_summary(run)["captioners"] if storage.exists(run.dataset) else {}
    return [
        _stored(run, name, captioner, name in (*manifest.captioner_names, *manifest.imported_names), name in in_dataset)
        for captioner, names in by_captioner(ledger.captioners(run), manifest.several_texts)
        for name in names
    ]


def _stored(run: Run, name: str, captioner: str | None, in_manifest: bool, in_dataset: bool) -> StoredCaptioner:
    try:
        settings = ledger.captioner_settings(run, name)
    except FileNotFoundError:
        settings = {}
    return StoredCaptioner(
        name=name,
        captioner=captioner,
        id=settings.get("id"),
        kind=settings.get("kind"),
        model=settings.get("model"),
        shards=len(ledger.captioned_shards(run, name)),
        images=sum(record.rows - record.failed for record in ledger.captioned(run, name)),
        in_manifest=in_manifest,
        in_dataset=in_dataset,
    )


def remove_all(run: Run, manifest: Manifest, name: str, captions: bool) -> list[str]:
    """Remove a captioner, or all texts of one that makes several. As `remove`, which gives the arguments.

    A folder of that very name comes first. Nothing is removed if one of the texts must not be.
    """
    stored = ledger.captioners(run)
    texts = [] if name in stored else [text for text in manifest.captioner_texts.get(name, ()) if text in stored]
    for text in texts or [name]:
        _check_removal(run, text, captions)
    return [line for text in texts or [name] for line in remove(run, text, captions)]


def remove(run: Run, name: str, captions: bool) -> list[str]:
    """Remove a captioner's folder and its quarantine.

    Committed captions go first and the settings last, so after a kill the captioner is incomplete, and can be removed
    or completed.

    Args:
        run: The run.
        name: Name of the captioner.
        captions: Also remove captions. Without it, a captioner with captions is an error.

    Returns:
        What was removed, as lines of text.

    Raises:
        RecaptionError: The run has no such captioner, or it has captions.
    """
    held = _check_removal(run, name, captions)
    for shard in ledger.captioned_shards(run, name):
        storage.remove(run.caption_shard(name, shard))
    for folder in (run.parts(name), run.caption_ledger(name), run.quarantine("captions", name), run.captioner(name)):
        storage.remove(folder)
    return [f"removed {name} with captions of {held}" if held else f"removed {name}, which had no captions"]


def _check_removal(run: Run, name: str, captions: bool) -> str:
    """What captions would go with a captioner; empty if there are none. Raises RecaptionError as `remove` does."""
    names = ledger.captioners(run)
    if name not in names:
        raise RecaptionError(f"{run.url}: has no captioner {name!r}; it has {', '.join(names) or 'none'}")
    shards = ledger.captioned_shards(run, name)
    images = sum(record.rows - record.failed for record in ledger.captioned(run, name))
    if not shards and not images:
        return ""
    held = f"{wording.count(images, 'image')} in {wording.count(len(shards), 'committed shard')}"
    if not captions:
        raise RecaptionError(
            f"{run.captioner(name)}: has captions of {held}. To remove them too, give --captions. To leave them out of "
            "the dataset only, use `lotlip-data shard --captioners`."
        )
    return held


def format_text(run: Run, stored: Sequence[StoredCaptioner]) -> list[str]:
    """A table with one line per captioner."""
    if not stored:
        return [f"{run.url}: no captioner has started"]
    total = len(ledger.shards_with_images(run))
    rows = [("captioner", "shards", "images", "manifest", "dataset", "kind", "model")]
    rows += [
        (
            entry.name,
            f"{entry.shards:,} of {total:,}",
            f"{entry.images:,}",
            "yes" if entry.in_manifest else "no",
            "yes" if entry.in_dataset else "no",
            entry.kind or "?",
            entry.model or "?",
        )
        for entry in stored
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
