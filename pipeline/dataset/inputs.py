"""Which shards have all images and captions that the dataset needs, and what is missing of the others."""

from collections.abc import Iterable, Sequence

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import captioned_shards, fetched_shards
from lotlip_data.pipeline.dataset.outdated import LISTED, caption_command, is_imported
from lotlip_data.pipeline.dataset.recipe import wanted_captioners
from lotlip_data.pipeline.downloading.remaining import missing_images


def missing_captions(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> str:
    """What the stages before have not committed, such as `captions by llava of 3 shards (00001, …)`; empty for nothing.

    Args:
        run: The run.
        manifest: The manifest of the run.
        captioners: As for `shard`.
    """
    if missing := missing_images(run):
        return missing
    absent = absent_captions(run, wanted_captioners(manifest, captioners))
    return " and ".join(f"captions by {name} of {format_shards(shards)}" for name, shards in absent.items() if shards)


def complete_shards(run: Run, captioners: Iterable[str]) -> set[int]:
    """The downloaded shards with captions by all captioners, and those without images."""
    return set(fetched_shards(run)).difference(*absent_captions(run, captioners).values())


def absent_captions(run: Run, captioners: Iterable[str]) -> dict[str, set[int]]:
    """By captioner, the downloaded shards with images that lack its captions."""
    with_images = set(ledger.shards_with_images(run))
    return {name: with_images - set(captioned_shards(run, name)) for name in captioners}


def ready_shards(
    run: Run, manifest: Manifest, fetched: Iterable[int], captioners: Sequence[str], command: str
) -> tuple[set[int], list[str]]:
    """The shards that can be built, and what is missing of the others.

    Args:
        run: The run.
        manifest: The manifest of the run.
        fetched: The downloaded shards.
        captioners: The captioners whose texts are needed.
        command: The command line that takes the option `--captioners`, without it.
    """
    fetched = set(fetched)
    stems = (name.partition(".")[0] for name in storage.list_names(run.lists))
    planned = {int(stem) for stem in stems if stem.isdigit()}
    ready, missing = set(fetched), []
    if absent := planned - fetched:
        missing.append(f"missing: images of {format_shards(absent)}: run `lotlip-data download` again")
    absent_by_name = absent_captions(run, captioners)
    complete = [name for name in captioners if not absent_by_name[name]]
    for name, absent in absent_by_name.items():
        if absent:
            remedy = _remedy(run, manifest, name, complete, command)
            missing.append(f"missing: captions by {name} of {format_shards(absent)}: {remedy}")
            ready -= absent
    return ready, missing


def _remedy(run: Run, manifest: Manifest, name: str, complete: Sequence[str], command: str) -> str:
    """How to get the captions that `name` lacks, or do without: captions by the captioners `complete` exist."""
    recaption = caption_command(run, name)
    if name in manifest.captioner_names or is_imported(run, name):
        bring = f"run {recaption}"
    else:
        bring = f"name it under `captioners` in {run.manifest} again and run {recaption}"
    without = f"`{command} --captioners {','.join(complete)}`"
    return f"{bring}; or leave it out with {without}" if complete else bring


def format_shards(shards: set[int]) -> str:
    names = [shard_name(shard) for shard in sorted(shards)[:LISTED]]
    return f"{wording.count(len(shards), 'shard')} ({', '.join(names)}{', …' if len(shards) > LISTED else ''})"
