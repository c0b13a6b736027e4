"""ImageNet-1k's validation images, with open_clip's class names and CLIP's 80 templates.

Class c is the c-th WordNet id in alphabetical order. Three layouts are read:

- folders named by WordNet ids, which torchvision and valprep.sh make of the archive, in any of `ROOTS`;
- Kaggle's: one folder of images with LOC_val_solution.csv and LOC_synset_mapping.txt;
- the archive unpacked into one folder, with the development kit, packed or unpacked.

The development kit gives the class of each validation image. ILSVRC2012_validation_ground_truth.txt has the number of a
class per line, of image 1, 2, …; in meta.mat, the `synsets` without children are the classes, with the number
`ILSVRC2012_ID` and the WordNet id `WNID`.
"""

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Entry, Folder, TaskDataError

CLASSES = 1000
IMAGES_ARCHIVE, DEVKIT_ARCHIVE = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
CHECKSUMS = {
    IMAGES_ARCHIVE: "md5:29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_ARCHIVE: "md5:fa75699e90414af021442c21a62c3abf",
}
META = "ILSVRC2012_devkit_t12/data/meta.mat"
GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC/val"
KAGGLE_SOLUTION, KAGGLE_MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
CLASS_NAMES_FILE = "classnames.txt"
ROOTS = ("val/", f"{KAGGLE_IMAGES}/", "")
"""Where the folders named by WordNet ids may be."""
WHERE = (
    f"Download {IMAGES_ARCHIVE} ({CHECKSUMS[IMAGES_ARCHIVE]}) and {DEVKIT_ARCHIVE} ({CHECKSUMS[DEVKIT_ARCHIVE]}) from "
    "https://image-net.org/download-images to FOLDER, and unpack the images: mkdir FOLDER/val; tar xf "
    f"FOLDER/{IMAGES_ARCHIVE} -C FOLDER/val. If torchvision.datasets.ImageNet or valprep.sh "
    "(https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh) has sorted the images into "
    f"FOLDER/val/n01440764/*.JPEG and so on, {DEVKIT_ARCHIVE} is not needed. Kaggle's "
    f"imagenet-object-localization-challenge can be used instead: FOLDER/{KAGGLE_IMAGES}/*.JPEG, "
    f"FOLDER/{KAGGLE_SOLUTION} and FOLDER/{KAGGLE_MAPPING}."
)
_WORDNET_ID = re.compile(r"n\d{8}")
_DAMAGED_KIT_ERRORS = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    NotImplementedError,
    zlib.error,
)


def read_records(folder: Folder) -> Iterator[Record]:
    """One record per validation image, in whichever layout the folder has."""
    if not folder.names():
        raise folder.error("", "does not exist or is empty")
    for root in ROOTS:
        if ids := sorted(filter(_WORDNET_ID.fullmatch, folder.names(root.rstrip("/")))):
            return _read_class_folders(folder, root, ids)
    return _read_kaggle(folder) if folder.has(KAGGLE_SOLUTION) else _read_with_devkit(folder)


def read_classes(folder: Folder) -> tuple[Sequence[str], Sequence[str]]:
    """The 1,000 class names in the order of the labels, and CLIP's 80 templates.

    The names are open_clip's, or the lines of the folder's classnames.txt if there is one.

    Raises:
        TaskDataError: If open_clip is not installed, or if classnames.txt does not have 1,000 names.
    """
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError:
        raise TaskDataError(
            "ImageNet: the class names and templates come from open_clip, which is not installed; "
            "pip install open-clip-torch==3.3.0"
        ) from None
    names: Sequence[str] = IMAGENET_CLASSNAMES
    if folder.has(CLASS_NAMES_FILE):
        names = folder.read_text(CLASS_NAMES_FILE).splitlines()
        blank = sum(not name.strip() for name in names)
        if len(names) != CLASSES or blank:
            raise folder.error(
                CLASS_NAMES_FILE, f"has {len(names)} lines, {blank} of them blank; expected {CLASSES} names"
            )
    return names, [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


IMAGENET = Task(
    name="imagenet",
    title="ImageNet",
    kind="classification",
    images=50_000,
    texts_per_image=0,
    where=WHERE,
    read_records=read_records,
    read_classes=read_classes,
    checksums=CHECKSUMS,
)


def _read_class_folders(folder: Folder, root: str, ids: list[str]) -> Iterator[Record]:
    if len(ids) != CLASSES:
        raise folder.error(root, f"has {len(ids)} folders named by WordNet ids; expected {CLASSES}")
    for label, wordnet_id in enumerate(ids):
        for name in sorted(folder.names(f"{root}{wordnet_id}")):
            if name.lower().endswith((".jpeg", ".jpg")):
                path = f"{root}{wordnet_id}/{name}"
                yield Record(image_paths=(path,), source=path, label=label)


def _read_kaggle(folder: Folder) -> Iterator[Record]:
    ids = sorted(line.split()[0] for line in folder.read_text(KAGGLE_MAPPING).splitlines() if line.strip())
    if len(ids) != CLASSES or len(set(ids)) != CLASSES:
        raise folder.error(KAGGLE_MAPPING, f"names {len(set(ids))} classes; expected {CLASSES}")
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    for line_number, row in enumerate(csv.DictReader(folder.read_text(KAGGLE_SOLUTION).splitlines()), 2):
        entry = Entry(row, f"{KAGGLE_SOLUTION}, line {line_number}", folder)
        image, boxes = (entry.field(name).text() for name in ("ImageId", "PredictionString"))
        wordnet_id = boxes.split(" ")[0]
        if wordnet_id not in labels:
            raise folder.error(
                KAGGLE_SOLUTION, f"gives {image} the class {wordnet_id!r}, which {KAGGLE_MAPPING} does not name"
            )
        yield Record(
            image_paths=(f"{KAGGLE_IMAGES}/{image}.JPEG", f"val/{image}.JPEG"),
            source=entry.location,
            label=labels[wordnet_id],
        )


def _read_with_devkit(folder: Folder) -> Iterator[Record]:
    truth = _read_devkit(folder)
    if len(truth.class_ids) != CLASSES:
        raise folder.error(
            DEVKIT_ARCHIVE, f"names {len(truth.class_ids)} classes; expected {CLASSES}; download it again"
        )
    labels = {wordnet_id: label for label, wordnet_id in enumerate(truth.class_ids)}
    for number, wordnet_id in enumerate(truth.image_class_ids, 1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        yield Record(
            image_paths=(f"val/{name}", name), source=f"{GROUND_TRUTH}, line {number}", label=labels[wordnet_id]
        )


@dataclass(frozen=True)
class _GroundTruth:
    """The contents of the development kit, as WordNet ids."""

    class_ids: list[str]
    """Of all classes, in alphabetical order."""
    image_class_ids: list[str]
    """Of the class of each validation image, in the order of the images' names."""


def _read_devkit(folder: Folder) -> _GroundTruth:
    """Raises TaskDataError if the kit does not exist or is not as published."""
    path = folder.first_existing(DEVKIT_ARCHIVE, META)
    if path == META:
        meta, truth = (storage.read_bytes(folder.url_of(folder.first_existing(path))) for path in (META, GROUND_TRUTH))
        return _parse_devkit(folder, META, meta, truth)
    content = io.BytesIO(storage.read_bytes(folder.url_of(DEVKIT_ARCHIVE)))
    try:
        with tarfile.open(fileobj=content) as kit:
            members = [kit.extractfile(name) for name in (META, GROUND_TRUTH)]
            meta, truth = (member.read() if member else b"" for member in members)
    except (tarfile.TarError, *_DAMAGED_KIT_ERRORS) as error:
        raise folder.error(DEVKIT_ARCHIVE, f"cannot be unpacked ({error}); download it again") from error
    return _parse_devkit(folder, DEVKIT_ARCHIVE, meta, truth)


def _parse_devkit(folder: Folder, path: str, meta: bytes, truth: bytes) -> _GroundTruth:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wordnet_ids = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if synset["num_children"] == 0
        }
        return _GroundTruth(sorted(wordnet_ids.values()), [wordnet_ids[int(number)] for number in truth.split()])
    except (MatReadError, *_DAMAGED_KIT_ERRORS) as error:
        raise folder.error(path, f"does not give the classes of the images ({error!r}); download it again") from error
