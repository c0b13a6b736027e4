"""Verifies what the dataset is made of: lists, downloaded images, captions and the lists of excluded images."""

from collections import Counter

import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.formats.score_file import ScorerRecord, ScoreSummary
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset import score_limits
from lotlip_data.pipeline.dataset.join import JoinError
from lotlip_data.pipeline.dataset.outdated import OutdatedCaptions, caption_command
from lotlip_data.pipeline.dataset.scores import ScoreRecipe
from lotlip_data.pipeline.dataset.stage import read_captions
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.commit import list_remedy
from lotlip_data.pipeline.downloading.reader import fetched_images, fetched_rows, refetch_remedy
from lotlip_data.pipeline.existing_images.partition import list_remedy as container_list_remedy
from lotlip_data.pipeline.url_lists.partition import load_partition
from lotlip_data.pipeline.verification.tally import Tally

READ_ROWS = 1000
SAMPLE_COLUMNS = (
    *("key", "uid", "url", "sha256", "status", "texts", "sources"),
    *("width", "height", "original_width", "original_height"),
)
"""The columns of an image that a caption is compared with."""


def verify_lists(run: Run) -> Tally:
    """The partition, the rounds of retries, and the lists of shards. Lists of downloaded shards may be missing."""
    tally = Tally("lists")
    shards = 0
    with tally.reading():
        partition = load_partition(run)
        if partition is None:
            return Tally("lists")
        tally.note_json(run.plan)
        shards = partition.shards + sum(each.shards for each in retry.rounds(run))
    for name in storage.list_names(run.lists, ".json"):
        if name.startswith("retry-"):
            tally.read_json(run.list_file(name), retry.RESTORE)
    fetched, existing = set(ledger.fetched_shards(run)), set(storage.list_names(run.lists))
    for shard in range(shards):
        is_container = partition.is_container(shard)
        name = f"{shard_name(shard)}.{'json' if is_container else 'parquet'}"
        if shard in fetched and name not in existing:
            continue
        if is_container:
            tally.read_json(run.container_list(shard), container_list_remedy(run, shard))
        else:
            tally.read_parquet(run.list_shard(shard), list_remedy(run, shard))
    return tally


def verify_images(run: Run) -> Tally:
    """The marker, the tar or the container, and the table of every downloaded shard."""
    tally = Tally("images")
    fetched = ledger.fetched_shards(run)
    for shard in sorted(set(ledger.recorded(run.image_ledger)).difference(fetched)):
        remedy = "Run `lotlip-data download` again."
        tally.note_missing(run.image_stats(shard), f"but the shard was downloaded. {remedy}")
    for shard in fetched:
        tally.files += 2  # the marker and the table; `reading` counts the tar
        with tally.reading():
            marker = ledger.read_image_stats(run, shard)
            tally.note_json(run.image_stats(shard))
            tally.unrecorded += 2 * ("digests" not in marker)
            for _ in fetched_images(run, shard):
                pass
            rows = fetched_rows(run, shard, marker, None).num_rows
            if rows != marker["count"]:
                url = run.image_file(marker["parquet"])
                raise UserError(
                    f"{url}: has {rows} rows, but its marker says {marker['count']}. {refetch_remedy(run, shard)}"
                )
    return tally


def verify_captions(run: Run) -> Tally:
    """The settings, the committed captions and the saved parts of every captioner."""
    tally, outdated = Tally("captions"), OutdatedCaptions()
    fetched = set(ledger.fetched_shards(run))
    for name in ledger.captioners(run):
        settings = run.captioner_settings(name)
        if storage.exists(settings):
            with tally.reading():
                ledger.captioner_settings(run, name)
                tally.note_json(settings)
        if storage.exists(run.model_files(name)):
            tally.read_json(run.model_files(name), "Remove it; it is then recorded anew.", dict[str, str])
        if storage.exists(run.model_revision(name)):
            tally.read_json(run.model_revision(name), "Remove it; the newest commit is then recorded.", dict[str, str])
        captioned = ledger.captioned_shards(run, name)
        if captioned and not storage.exists(settings):
            remedy = f"Put it back from a copy, or remove {run.captioner(name)} and caption again."
            tally.note_missing(settings, f"but there are captions beside it. {remedy}")
        for shard in sorted(set(ledger.recorded(run.caption_ledger(name))).difference(captioned)):
            remedy = f"Run {_command(run, name)}."
            tally.note_missing(run.caption_shard(name, shard), f"but the shard was captioned. {remedy}")
        for shard in captioned:
            url = run.caption_shard(name, shard)
            rows = tally.read_parquet(url, f"Remove it and run {_command(run, name)}.")
            if rows is not None and shard in fetched:
                is_complete = _check_count(run, tally, shard, url, rows, _command(run, name))
                try:
                    outdated.add(name, shard, _outdated(run, name, shard))
                except JoinError as error:
                    tally.problems += [str(error)] if is_complete else []  # else the count is the problem
                except (UserError, FileNotFoundError):
                    continue  # damage is a problem of its own
        for path in storage.list_below(run.parts(name)):
            if path.endswith(".parquet"):
                tally.read_parquet(storage.join(run.parts(name), path), "Remove it; its images are captioned again.")
    tally.notes += outdated.messages(run, "are outdated")
    return tally


def _outdated(run: Run, name: str, shard: int) -> Counter[str]:
    """The captions of a shard whose samples have changed since, by reason."""
    captions, marker = read_captions(run, name, shard), ledger.read_image_stats(run, shard)
    rows = fetched_rows(run, shard, marker, SAMPLE_COLUMNS).filter(pc.field("status") == SUCCESS)
    images = (image for batch in rows.to_batches(READ_ROWS) for image in batch.to_pylist())
    return Counter(reason for image in images if (reason := captions.take(image).outdated))


def _command(run: Run, name: str) -> str:
    try:
        return caption_command(run, name)
    except (UserError, FileNotFoundError):  # its settings are damaged, which is a problem of its own
        return f"`lotlip-data recaption {run.url}`"


def _check_count(run: Run, tally: Tally, shard: int, url: str, rows: int, command: str) -> bool:
    """Compare the number of captions of a shard with that of its images. Returns whether they are known to be equal."""
    try:
        images = ledger.read_image_stats(run, shard)["successes"]
    except UserError:
        return False  # a problem of the images
    if rows != images:
        tally.problems.append(
            f"{url}: has captions or reasons of {rows} images, but the shard has {images}. Remove it and run {command}."
        )
    return rows == images


def verify_scores(run: Run) -> Tally:
    """What makes the scores of every scorer, its scores and its surveys; and the limits that follow from all scores."""
    tally = Tally("scores")
    for name in score_file.scorers(run):
        remedy = f"Remove it and run `lotlip-data score {run.url} --scorer {name}`."
        if storage.exists(run.scorer_settings(name)):
            tally.read_json(run.scorer_settings(name), remedy, ScorerRecord)
        if storage.exists(run.score_summary(name)):
            tally.read_json(run.score_summary(name), remedy, ScoreSummary)
        for file in storage.list_names(run.scorer(name), score_file.ENDING):
            tally.read_parquet(run.score_file(name, file), remedy, score_file.SCORES.names)
        for file in storage.list_names(run.score_survey(name), score_file.ENDING):
            tally.read_parquet(run.score_survey(name, file), remedy)
    for file in storage.list_names(run.score_limits, ".json"):
        tally.read_json(storage.join(run.score_limits, file), score_limits.REMEDY, ScoreRecipe)
    return tally


def verify_clean(run: Run) -> Tally:
    """The hashes and the lists of excluded images, all of which can be computed again."""
    tally = Tally("excluded images")
    remedy = f"Remove {run.clean()} and run `lotlip-data shard {run.url}`."
    for path in storage.list_below(run.clean()):
        url = run.clean(path)
        if path.endswith(".parquet"):
            tally.read_parquet(url, remedy)
        elif path.endswith(".json"):
            tally.read_json(url, remedy)
    return tally
