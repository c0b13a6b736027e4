"""FG-OVD: regions of COCO's 2017 images with a right caption and hard negatives, in which an attribute is exchanged.

The benchmarks of lorebianchi98/FG-OVD are files in the format of LVIS: `images` with `id`, `file_name`, `width` and
`height`; `categories`, each of which is a caption, with `id` and `name`; `annotations` with `bbox` ([x, y, width,
height] in pixels), `image_id`, `category_id` (the right caption) and `neg_category_ids` (the wrong ones, ten at most).

A region is compared as its authors' evaluation of CLIP compares it (lorebianchi98/FG-CLIP,
fgovd_evaluation/inference_on_benchmark.py at scale 1): the box is rounded outwards to whole pixels, cut at the edges of
the picture, and cropped; the model's own preprocessing follows. 360CVGroup/FG-CLIP pools features of patches instead.
"""

import functools
import math
from collections.abc import Iterator, Mapping

from lotlip_data.training.evaluation.selection import Choice
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Entry, Folder
from lotlip_data.training.evaluation.tasks.regions import Box

DIFFICULTY_FILES = {
    "hard": "1_attributes.json",
    "medium": "2_attributes.json",
    "easy": "3_attributes.json",
    "trivial": "shuffle_negatives.json",
}
ATTRIBUTE_FILES = {name: f"{name}.json" for name in ("color", "material", "pattern", "transparency")}
CHECKSUMS = {
    "benchmarks/1_attributes.json": "git:fd77be3a90e729362b3d4c0347a63050352abe34",
    "benchmarks/2_attributes.json": "git:52ee93eb944a89fe0d2edd75801e2e60461f254d",
    "benchmarks/3_attributes.json": "git:b446db2b677744c4d200df303b25ca4a14cdad8b",
    "benchmarks/shuffle_negatives.json": "git:b542545a604439eaa8c779441753fd4510b36386",
    "benchmarks/color.json": "git:102d0e761b3f7085d6b626e9f3a13bab14b0ec09",
    "benchmarks/material.json": "git:188f5ba237788a66762b1d2176c79f5393653697",
    "benchmarks/pattern.json": "git:19475cf2bd66f067ad3035ce9e232c52d18e9149",
    "benchmarks/transparency.json": "git:7edfb7ba959886db07f9a712f097c60604f26123",
}
"""The ids of the files in the repository, at d124bc5."""
PUBLISHED_QUERIES = {"easy": 1_299, "pattern": 467, "transparency": 409}
"""Counted in the published files. Those of the other categories were not at hand."""
WHERE = (
    "Put the folder `benchmarks` of https://github.com/lorebianchi98/FG-OVD into FOLDER, so that there are "
    "FOLDER/benchmarks/1_attributes.json and so on. Download http://images.cocodataset.org/zips/val2017.zip and "
    "train2017.zip, and unpack them, so that the images are FOLDER/val2017/*.jpg and FOLDER/train2017/*.jpg."
)
IMAGE_ROOTS = ("", "coco/", "images/")
"""Where the folders val2017 and train2017 may be."""


def read_records(folder: Folder, files: Mapping[str, str]) -> Iterator[Record]:
    """One record per annotation, category by category.

    Args:
        folder: The folder of the set.
        files: The name of the file of each category.
    """
    for category, name in files.items():
        content = folder.read_json(folder.first_existing(f"benchmarks/{name}", name))
        images = {entry.field("id").integer(): entry for entry in content.field("images").items()}
        captions = {entry.field("id").integer(): entry.field("name") for entry in content.field("categories").items()}
        for entry in content.field("annotations").items():
            image = _look_up(images, entry.field("image_id"), "images")
            right = _look_up(captions, entry.field("category_id"), "categories").text()
            wrong = tuple(
                _look_up(captions, each, "categories").text() for each in entry.field("neg_category_ids").items()
            )
            if not wrong:
                raise folder.error(entry.location, "has no wrong caption; download it again")
            path = image.field("file_name").text()
            yield Record(
                image_paths=tuple(f"{root}{path}" for root in IMAGE_ROOTS),
                source=entry.location,
                choice=Choice(category, (right,), wrong),
                box=_read_box(entry.field("bbox"), image),
            )


def _look_up(entries: Mapping[int, Entry], reference: Entry, kind: str) -> Entry:
    """The entry that an annotation refers to by its id."""
    number = reference.integer()
    if number not in entries:
        raise reference.folder.error(reference.location, f"is {number}, which is no id of `{kind}`; download it again")
    return entries[number]


def _read_box(entry: Entry, image: Entry) -> Box:
    """The box, rounded outwards. Raises TaskDataError if it has no area, or no part of the picture."""
    numbers = [number.number() for number in entry.items()]
    width, height = (image.field(side).integer() for side in ("width", "height"))
    if len(numbers) != 4 or min(numbers[2:]) <= 0:
        raise entry.folder.error(entry.location, f"is not [x, y, width, height] but {numbers}; download it again")
    x, y, box_width, box_height = numbers
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        raise entry.folder.error(
            entry.location, f"is outside the picture, which has {width} x {height} pixels: {numbers}; download it again"
        )
    return Box(math.floor(x), math.floor(y), math.ceil(x + box_width), math.ceil(y + box_height), (width, height))


def _task(name: str, title: str, files: Mapping[str, str]) -> Task:
    return Task(
        name=name,
        title=title,
        kind="selection",
        where=WHERE,
        read_records=functools.partial(read_records, files=files),
        categories={category: PUBLISHED_QUERIES.get(category) for category in files},
        checksums={f"benchmarks/{file}": CHECKSUMS[f"benchmarks/{file}"] for file in files.values()},
        distinct_images=False,
    )


FG_OVD = _task("fg-ovd", "FG-OVD", DIFFICULTY_FILES)
FG_OVD_ATTRIBUTES = _task("fg-ovd-attributes", "FG-OVD, attributes", ATTRIBUTE_FILES)
