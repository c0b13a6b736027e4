"""ShareGPT4V-1k and -10k: the first 1,000 and 10,000 captions of SA-1B's images in ShareGPT4V's pre-training file.

The authors' file of these 10,000 records can be used instead.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Entry, Folder

FILES = ("share-captioner_coco_lcs_sam_1246k_1107.json", "share4v_sam_10k.json")
WHERE = (
    f"Download https://huggingface.co/datasets/Lin-Chen/ShareGPT4V/resolve/main/{FILES[0]} to FOLDER/{FILES[0]}. "
    "Download sa_000000.tar to sa_000050.tar of SA-1B (https://ai.meta.com/datasets/segment-anything-downloads), which "
    "have the images that the file names "
    "(https://github.com/ShareGPT4Omni/ShareGPT4V/blob/master/docs/Data.md). Put the images into FOLDER/sam/images, or "
    "unpack each archive into a folder of its number: FOLDER/sa_000000/images or FOLDER/sa_000000."
)
_SA_1B_IMAGE = re.compile(r"(?:.*/)?(sa_\d+\.jpg)")


def read_records(folder: Folder, count: int) -> Iterator[Record]:
    """The first `count` records of SA-1B's images, in the order of the file."""
    path = folder.first_existing(*FILES)
    records: list[Record] = []
    for entry in folder.read_json_array(path):
        image = entry.field("image").text()
        if match := _SA_1B_IMAGE.fullmatch(image):
            name = match[1]
            image_paths = (image, f"sam/images/{name}", f"images/{name}", name)
            records.append(Record(image_paths=image_paths, source=entry.location, texts=(_caption(entry),)))
            if len(records) == count:
                break
    unpacked = _find_unpacked(folder, {record.image_paths[-1] for record in records})
    for record in records:
        unpacked_path = unpacked.get(record.image_paths[-1], ())
        yield dataclasses.replace(record, image_paths=(*record.image_paths, *unpacked_path))


def _caption(entry: Entry) -> str:
    """The answer to the first question of a record's conversation."""
    conversations = entry.field("conversations")
    turns = conversations.items()
    if len(turns) < 2:
        raise entry.folder.error(conversations.location, "has no question and answer; download it again")
    return turns[1].field("value").text()


def _find_unpacked(folder: Folder, names: set[str]) -> dict[str, tuple[str, ...]]:
    """The paths of the named images in the folders of SA-1B's archives.

    Only these names are kept: SA-1B has 11 million.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for archive in sorted(name for name in folder.names() if re.fullmatch(r"sa_\d{6}", name)):
        for subfolder in (archive, f"{archive}/images"):
            paths |= {name: (f"{subfolder}/{name}",) for name in folder.list_names(subfolder) if name in names}
    return paths


def _task(name: str, title: str, count: int, table_1_row: tuple[float, float]) -> Task:
    return Task(
        name=name,
        title=title,
        kind="long",
        images=count,
        texts_per_image=1,
        where=WHERE,
        read_records=functools.partial(read_records, count=count),
        table_1_row=table_1_row,
        distinct_images=False,  # the authors use the records as they come, so a repeated image is only counted
    )


SHAREGPT4V_1K = _task("sharegpt4v-1k", "ShareGPT4V-1k", 1_000, (8.15, 173.24))
SHAREGPT4V_10K = _task("sharegpt4v-10k", "ShareGPT4V-10k", 10_000, (8.24, 173.66))
