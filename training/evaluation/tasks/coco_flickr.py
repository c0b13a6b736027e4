"""MSCOCO and Flickr30k: the test images of Karpathy's splits, each with its first five captions."""

import functools
from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

CAPTIONS_PER_IMAGE = 5
SPLITS_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
MSCOCO_FILE, FLICKR30K_FILE = "dataset_coco.json", "dataset_flickr30k.json"
MSCOCO_WHERE = (
    f"Download {SPLITS_URL} and put its {MSCOCO_FILE} into FOLDER. Download "
    "http://images.cocodataset.org/zips/val2014.zip and unpack it, so that the images are "
    "FOLDER/val2014/COCO_val2014_*.jpg."
)
FLICKR30K_WHERE = (
    f"Download {SPLITS_URL} and put its {FLICKR30K_FILE} into FOLDER. Request the images at "
    "https://shannon.cs.illinois.edu/DenotationGraph/ and unpack them to FOLDER/flickr30k-images/*.jpg."
)


def read_records(folder: Folder, file: str, image_folders: tuple[str, ...]) -> Iterator[Record]:
    """One record per image of the test split, in the order of the file.

    Args:
        folder: The folder of the set.
        file: The name of the file of Karpathy's splits.
        image_folders: Where the images may be, besides the folder itself.
    """
    path = folder.first_existing(file, f"caption_datasets/{file}", f"karpathy/{file}")
    for entry in folder.read_json(path).field("images").items():
        if entry.field("split").text() == "test":
            name = entry.field("filename").text()
            sentences = entry.field("sentences").items()[:CAPTIONS_PER_IMAGE]
            yield Record(
                image_paths=(*(f"{image_folder}/{name}" for image_folder in image_folders), name),
                source=entry.location,
                texts=tuple(sentence.field("raw").text() for sentence in sentences),
            )


MSCOCO = Task(
    name="mscoco",
    title="MSCOCO",
    kind="short",
    images=5_000,
    texts_per_image=CAPTIONS_PER_IMAGE,
    where=MSCOCO_WHERE,
    read_records=functools.partial(
        read_records, file=MSCOCO_FILE, image_folders=("val2014", "images/val2014", "images")
    ),
    table_1_row=(1.0, 11.77),
)
FLICKR30K = Task(
    name="flickr30k",
    title="Flickr30k",
    kind="short",
    images=1_000,
    texts_per_image=CAPTIONS_PER_IMAGE,
    where=FLICKR30K_WHERE,
    read_records=functools.partial(
        read_records, file=FLICKR30K_FILE, image_folders=("flickr30k-images", "flickr30k_images", "images")
    ),
    table_1_row=(1.0, 14.03),
)
