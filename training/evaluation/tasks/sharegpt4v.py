"""ShareGPT4V-1k and -10k: the first 1,000 and 10,000 captions of images of SA-1B in ShareGPT4V's pre-training file.

The authors' file of these 10,000 records is read too.
"""

import functools
import re
from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Entry, Folder

FILES = ("share-captioner_coco_lcs_sam_1246k_1107.json", "share4v_sam_10k.json")
WHERE = (
    f"Get https://huggingface.co/datasets/Lin-Chen/ShareGPT4V/resolve/main/{FILES[0]} to FOLDER/{FILES[0]}, and the "
    "images it names from SA-1B (https://ai.meta.com/datasets/segment-anything-downloads), of its archives "
    "sa_000000.tar to sa_000050.tar (https://github.com/ShareGPT4Omni/ShareGPT4V/blob/master/docs/Data.md), in "
    "FOLDER/sam/images/sa_*.jpg or as its archives unpack: FOLDER/sa_000000/images/ or FOLDER/sa_000000/"
)
_OF_SA_1B = re.compile(r"(?:.*/)?(sa_\d+\.jpg)")


def read(folder: Folder, records: int) -> Iterator[Record]:
    path = folder.first(*FILES)
    entries = []
    for entry in folder.json_array(path):
        if match := _OF_SA_1B.fullmatch(image := entry.field("image").text()):
            name = match[1]
            entries.append((name, (image, f"sam/images/{name}", f"images/{name}", name), entry.place, _caption(entry)))
            if len(entries) == records:
                break
    unpacked = _unpacked(folder, {name for name, *_ in entries})
    for name, places, source, caption in entries:
        yield Record((*places, *unpacked.get(name, ())), source, (caption,))


def _caption(entry: Entry) -> str:
    turns = (conversations := entry.field("conversations")).items()
    if len(turns) < 2:
        raise entry.folder.broken(conversations.place, "has no question and answer; fetch it again")
    return turns[1].field("value").text()


def _unpacked(folder: Folder, wanted: set[str]) -> dict[str, tuple[str, ...]]:
    """Where the wanted images lie in the folders that SA-1B's archives unpack to; all of it has 11 million names."""
    found: dict[str, tuple[str, ...]] = {}
    for part in sorted(name for name in folder.names() if re.fullmatch(r"sa_\d{6}", name)):
        for place in (part, f"{part}/images"):
            found |= {name: (f"{place}/{name}",) for name in folder.listed(place) if name in wanted}
    return found


def _task(name: str, title: str, records: int, row: tuple[float, float]) -> Task:
    first = functools.partial(read, records=records)  # as they come: if two have the same image, it is only counted
    return Task(name, title, "long", records, 1, WHERE, first, row=row, distinct=False)


SHAREGPT4V_1K = _task("sharegpt4v-1k", "ShareGPT4V-1k", 1_000, (8.15, 173.24))
SHAREGPT4V_10K = _task("sharegpt4v-10k", "ShareGPT4V-10k", 10_000, (8.24, 173.66))
