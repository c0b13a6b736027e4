"""MSCOCO-FG and Flickr30k-FG: the test images of Karpathy's splits with finer texts, among similar images.

Of "Rethinking Benchmarks for Cross-modal Image-text Retrieval" (Chen, Yao and Jin, SIGIR 2023; repository
cwj1412/MSCOCO-Flikcr30K_FG). `Annotations/*_FG_ann.json` has five texts for each test image, by the name of the image
without its ending. `Images/*_FG_img_filenames.npy` names the images of the pool: the test images, and images of COCO's
2017 unlabeled images that are similar to them. Texts are compared with the whole pool, images with all texts.
"""

import functools
import io
from collections.abc import Iterator

import numpy as np

from lotlip_data.manifests import storage
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

REPOSITORY = "https://github.com/cwj1412/MSCOCO-Flikcr30K_FG"
TEXTS_PER_IMAGE = 5
CHECKSUMS = {
    "Flickr30K": {
        "Annotations/Flickr30K_FG_ann.json": "sha256:7e77be240f3c94bf16ae2db0b59183ad86a73f7a05354e5317d05ce54d12996f",
        "Images/Flickr30K_FG_img_filenames.npy": (
            "sha256:eabbf6f90053578af2303bac03c167c937ab8ea16fe0e6bd5b60c577d64feb70"
        ),
    },
    "MSCOCO": {
        "Annotations/MSCOCO_FG_ann.json": "sha256:2836a1d721aa16288bf14ae4dc76af6603af900d43946e7b9c89401b72905452",
        "Images/MSCOCO_FG_img_filenames.npy": (
            "sha256:7bdf7bf2086ff23ca937ebf3e0d51528bc4ff51b20543852591881faf9b4efd0"
        ),
    },
}
_POOL_FOLDERS = ("unlabeled2017", "images/unlabeled2017", "coco/unlabeled2017", "images")
"""Where the similar images may be, besides the folder itself."""


def read_records(folder: Folder, name: str, image_folders: tuple[str, ...]) -> Iterator[Record]:
    """One record per test image, in the order of the texts, then one per similar image, in the order of the pool.

    Args:
        folder: The folder of the set.
        name: The beginning of the names of the set's files.
        image_folders: Where the test images may be, besides the folder itself.
    """
    texts = folder.read_json(f"Annotations/{name}_FG_ann.json")
    pool_path = folder.first_existing(f"Images/{name}_FG_img_filenames.npy")
    pool = _read_names(folder, pool_path)
    test_images = set()
    for stem in texts.names():
        image, entry = f"{stem}.jpg", texts.field(stem)
        if image not in pool:
            raise folder.error(entry.location, f"is of an image that {pool_path} does not name; download both again")
        test_images.add(image)
        yield Record(
            image_paths=_places(image, image_folders),
            source=entry.location,
            texts=tuple(text.text() for text in entry.items()),
        )
    for image, number in pool.items():
        if image not in test_images:
            yield Record(
                image_paths=_places(image, _POOL_FOLDERS), source=f"{pool_path}, name {number}", is_distractor=True
            )


def _places(image: str, image_folders: tuple[str, ...]) -> tuple[str, ...]:
    return (*(f"{image_folder}/{image}" for image_folder in image_folders), image)


def _read_names(folder: Folder, path: str) -> dict[str, int]:
    """The names of images in a file of numpy, and their positions. Nothing but text is read: pickles run code."""
    try:
        array = np.load(io.BytesIO(storage.read_bytes(folder.url_of(path))), allow_pickle=False)
        is_list = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind == "U"
        names = array.tolist() if is_list else None
    except (ValueError, EOFError, OSError, MemoryError, SystemError) as error:  # the last for no code point
        raise folder.error(path, f"cannot be read as an array of numpy ({error}); download it again") from error
    if names is None:
        raise folder.error(path, "is not a list of file names; download it again")
    positions = {name: number for number, name in enumerate(names, 1)}
    if len(positions) < len(names) or "" in positions:
        raise folder.error(path, "has an empty name, or a name twice; download it again")
    return positions


def _task(
    title: str, name: str, images: int, distractors: int, test_images: str, image_folders: tuple[str, ...]
) -> Task:
    where = (
        f"Put the folders `Annotations` and `Images` of {REPOSITORY} into FOLDER, so that there are "
        f"FOLDER/Annotations/{name}_FG_ann.json and FOLDER/Images/{name}_FG_img_filenames.npy. {test_images} Download "
        "http://images.cocodataset.org/zips/unlabeled2017.zip and unpack it to FOLDER/unlabeled2017/*.jpg."
    )
    return Task(
        name=title.lower(),
        title=title,
        kind="short",
        images=images,
        texts_per_image=TEXTS_PER_IMAGE,
        distractors=distractors,
        where=where,
        read_records=functools.partial(read_records, name=name, image_folders=image_folders),
        checksums=CHECKSUMS[name],
    )


MSCOCO_FG = _task(
    "MSCOCO-FG",
    "MSCOCO",
    5_000,
    26_244,
    "Download http://images.cocodataset.org/zips/val2014.zip and unpack it to FOLDER/val2014/COCO_val2014_*.jpg.",
    ("val2014", "images/val2014", "coco/val2014", "images"),
)
FLICKR30K_FG = _task(
    "Flickr30k-FG",
    "Flickr30K",
    1_000,
    5_867,
    "Request the images of Flickr30k at https://shannon.cs.illinois.edu/DenotationGraph/ and unpack them to "
    "FOLDER/flickr30k-images/*.jpg.",
    ("flickr30k-images", "flickr30k_images", "images"),
)
