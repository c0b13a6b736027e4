"""MSCOCO and Flickr30k: the test images of Karpathy's splits, each with its first five captions."""

import functools
from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

CAPTIONS = 5
SPLITS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
COCO = ("dataset_coco.json", ("val2014", "images/val2014", "images"))
FLICKR = ("dataset_flickr30k.json", ("flickr30k-images", "flickr30k_images", "images"))


def read(folder: Folder, file: str, images: tuple[str, ...]) -> Iterator[Record]:
    path = folder.first(file, f"caption_datasets/{file}", f"karpathy/{file}")
    for entry in folder.json(path).field("images").items():
        if entry.field("split").text() == "test":
            name = entry.field("filename").text()
            texts = tuple(one.field("raw").text() for one in entry.field("sentences").items()[:CAPTIONS])
            yield Record((*(f"{place}/{name}" for place in images), name), entry.place, texts)


MSCOCO = Task(
    "mscoco",
    "MSCOCO",
    "short",
    5_000,
    CAPTIONS,
    f"Get {SPLITS}, whose {COCO[0]} goes to FOLDER/{COCO[0]}, and http://images.cocodataset.org/zips/val2014.zip, "
    "unpacked to FOLDER/val2014/COCO_val2014_*.jpg",
    functools.partial(read, file=COCO[0], images=COCO[1]),
    row=(1.0, 11.77),
)
FLICKR30K = Task(
    "flickr30k",
    "Flickr30k",
    "short",
    1_000,
    CAPTIONS,
    f"Get {SPLITS}, whose {FLICKR[0]} goes to FOLDER/{FLICKR[0]}, and ask for the images at "
    "https://shannon.cs.illinois.edu/DenotationGraph/, unpacked to FOLDER/flickr30k-images/*.jpg",
    functools.partial(read, file=FLICKR[0], images=FLICKR[1]),
    row=(1.0, 14.03),
)
