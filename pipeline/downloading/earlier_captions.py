"""What is left of the captions of a shard whose images are downloaded or scanned anew: those of unchanged images.

They become a saved part of the shard, such as a killed `recaption` leaves, so that the next one captions the other
images only.
"""

import contextlib
import time
import uuid
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.captioners.model_files import combined_digest
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import CAPTIONS, IMPORTED_KIND
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord

Images = Mapping[tuple[str, str | None], str]
"""By uid and sha256 of an image, its key."""


def remove_captions_of_others(run: Run, shard: int, images: Images, images_file: str) -> list[str]:
    """Remove the captions of a shard that is about to have other images, but keep those of unchanged images.

    Called before the new marker exists, so that a kill leaves no captions that do not belong to the images. Captioners
    see a shard without captions and caption what its part lacks. Imported captions are imported again.

    Args:
        run: The run.
        shard: The shard, which is not committed.
        images: The images that it is about to have.
        images_file: The name of the file with them, as `ledger.images_file` gives it.

    Returns:
        The captioners whose captions are removed. Captions that are those of all the images stay as they are.
    """
    removed = []
    for name in ledger.captioners(run):
        url = run.caption_shard(name, shard)
        try:
            captions = artifacts.read_parquet(url, f"Remove {url}; its images are captioned again.")
        except (FileNotFoundError, UserError):  # damage is a matter of the commands that read captions
            continue
        captioned = list(zip(captions["uid"].to_pylist(), captions["sha256"].to_pylist(), strict=True))
        if set(captioned) == set(images):
            continue
        unchanged = captions.filter(pa.array([image in images for image in captioned]))
        with contextlib.suppress(FileNotFoundError, UserError):  # without its settings, all is captioned again
            if unchanged.num_rows and (origin := _origin(run, name)):
                keys = [images[image] for image in captioned if image in images]
                _save(run, name, shard, _with_keys(unchanged, keys), origin | {"tar": images_file})
        storage.remove(url)
        ledger.forget_removed(run, name)
        removed.append(name)
    return removed


def _origin(run: Run, name: str) -> dict[str, str] | None:
    """The captioner, with its model, as the parts that it saves name it; None for captions that are imported."""
    settings = ledger.captioner_settings(run, name)
    if settings.get("kind") == IMPORTED_KIND:
        return None
    files: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        files = artifacts.read_json(run.model_files(name), "", dict[str, str])
    digest = combined_digest(files)
    return {"captioner": f"{settings['id']}+{digest}" if digest else settings["id"]}


def _with_keys(captions: pa.Table, keys: list[str]) -> pa.Table:
    """Captions as rows of `schema.CAPTIONS` with the keys that their images have now."""
    columns = [
        pa.array(keys, pa.string())
        if field.name == "key"
        else captions[field.name]
        if field.name in captions.column_names
        else pa.nulls(captions.num_rows, field.type)
        for field in CAPTIONS
    ]
    return pa.table(columns, names=CAPTIONS.names).cast(CAPTIONS)


def _save(run: Run, name: str, shard: int, rows: pa.Table, origin: Mapping[str, str]) -> None:
    """Save a part. Its record has its share of the work on the shard."""
    earlier = ledger.recorded(run.caption_ledger(name)).get(shard, WorkRecord(0, 0, 0, now := int(time.time()), now))
    share = rows.num_rows / max(1, earlier.rows)
    record = WorkRecord(
        rows.num_rows,
        pc.sum(pc.is_valid(rows["error"])).as_py(),
        pc.sum(rows["tokens"]).as_py() or 0,
        earlier.started,
        earlier.ended,
        round(share * earlier.spent),
        round(share * earlier.gpu),
    )
    part = storage.join(run.caption_parts(name, shard), f"00000-{uuid.uuid4().hex[:8]}-{record.name}.parquet")
    storage.create(part, artifacts.encode_parquet(rows.replace_schema_metadata(dict(origin))))
