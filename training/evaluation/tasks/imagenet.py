"""ImageNet-1k's validation images, with open_clip's class names and CLIP's 80 templates.

Class c is the c-th WordNet id in alphabetical order. Three layouts: folders named by WordNet id (what torchvision and
valprep.sh make of the archive), wherever they lie; the archive unpacked into one folder, with the development kit; or
Kaggle's, such a folder with LOC_val_solution.csv and LOC_synset_mapping.txt.

ImageNet's development kit, which says of what class each validation image is: its archive, or that unpacked.

ILSVRC2012_validation_ground_truth.txt: the number of a class a line, of image 1, 2, …
meta.mat: `synsets`; those without children are the classes, `ILSVRC2012_ID` is the number, `WNID` the WordNet id.
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
KAGGLE = "ILSVRC/Data/CLS-LOC/val"
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"

DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
ARCHIVE, KIT = "ILSVRC2012_img_val.tar", DEVKIT_ARCHIVE
CHECKSUMS = {ARCHIVE: "md5:29b22e2961454d5413ddabcf34fc5622", KIT: "md5:fa75699e90414af021442c21a62c3abf"}
WHERE = (
    f"Get {ARCHIVE} ({CHECKSUMS[ARCHIVE]}) and {KIT} ({CHECKSUMS[KIT]}) to FOLDER from "
    f"https://image-net.org/download-images, and unpack the former: mkdir FOLDER/val; tar xf FOLDER/{ARCHIVE} -C "
    "FOLDER/val. Images that torchvision.datasets.ImageNet or valprep.sh "
    "(https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh) has sorted into "
    "FOLDER/val/n01440764/*.JPEG and so on need no kit. Or get Kaggle's imagenet-object-localization-challenge: "
    f"FOLDER/{KAGGLE}/*.JPEG, FOLDER/{SOLUTION} and FOLDER/{MAPPING}"
)
ROOTS = ("val/", f"{KAGGLE}/", "")
_WORDNET_ID = re.compile(r"n\d{8}")


def read(folder: Folder) -> Iterator[Record]:
    if not folder.names():
        raise folder.broken("", "does not exist, or nothing is in it")
    ids = {root: sorted(filter(_WORDNET_ID.fullmatch, folder.names(root.rstrip("/")))) for root in ROOTS}
    root = next((root for root in ROOTS if ids[root]), None)
    if root is not None:
        return _folders(folder, root, ids[root])
    return _kaggle(folder) if folder.has(SOLUTION) else _unsorted(folder)


def _folders(folder: Folder, root: str, ids: list[str]) -> Iterator[Record]:
    if len(ids) != CLASSES:
        raise folder.broken(root, f"holds {len(ids)} folders named by WordNet ids, and {CLASSES} are needed")
    for label, wordnet_id in enumerate(ids):
        for name in sorted(folder.names(f"{root}{wordnet_id}")):
            if name.lower().endswith((".jpeg", ".jpg")):
                path = f"{root}{wordnet_id}/{name}"
                yield Record((path,), path, label=label)


def _kaggle(folder: Folder) -> Iterator[Record]:
    ids = sorted(line.split()[0] for line in folder.text(MAPPING).splitlines() if line.strip())
    if len(ids) != CLASSES or len(set(ids)) != CLASSES:
        raise folder.broken(MAPPING, f"names {len(set(ids))} classes, not {CLASSES}")
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    for number, row in enumerate(csv.DictReader(folder.text(SOLUTION).splitlines()), 2):
        entry = Entry(row, f"{SOLUTION}, line {number}", folder)
        image, boxes = (entry.field(name).text() for name in ("ImageId", "PredictionString"))
        wordnet_id = boxes.split(" ")[0]
        if wordnet_id not in labels:
            raise folder.broken(SOLUTION, f"has {image} of the class {wordnet_id!r}, which {MAPPING} does not name")
        yield Record((f"{KAGGLE}/{image}.JPEG", f"val/{image}.JPEG"), entry.place, label=labels[wordnet_id])


def _unsorted(folder: Folder) -> Iterator[Record]:
    truth = read_devkit(folder)
    if len(truth.classes) != CLASSES:
        raise folder.broken(KIT, f"names {len(truth.classes)} classes, not {CLASSES}; fetch it again")
    labels = {wordnet_id: label for label, wordnet_id in enumerate(truth.classes)}
    for number, wordnet_id in enumerate(truth.images, 1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        yield Record((f"val/{name}", name), f"{TRUTH}, line {number}", label=labels[wordnet_id])


def classes(folder: Folder) -> tuple[Sequence[str], Sequence[str]]:
    """open_clip's 1,000 names, or the folder's classnames.txt, one a line; and CLIP's 80 templates."""
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError:
        raise TaskDataError(
            "ImageNet: its class names and templates are open_clip's; pip install open-clip-torch==3.3.0"
        ) from None
    names: Sequence[str] = IMAGENET_CLASSNAMES
    if folder.has("classnames.txt"):
        names = folder.text("classnames.txt").splitlines()
        if len(names) != CLASSES or not all(map(str.strip, names)):
            blank = sum(not name.strip() for name in names)
            raise folder.broken("classnames.txt", f"has {len(names)} lines, {blank} of them blank, not {CLASSES} names")
    return names, [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


IMAGENET = Task("imagenet", "ImageNet", "classification", 50_000, 0, WHERE, read, classes=classes, checksums=CHECKSUMS)
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_DAMAGED = (OSError, EOFError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, zlib.error)


@dataclass(frozen=True)
class Truth:
    """WordNet ids: of all classes, in alphabetical order, and of each validation image, in the order of their names."""

    classes: list[str]
    images: list[str]


def read_devkit(folder: Folder) -> Truth:
    """Raises TaskDataError where there is no kit, or what is there is not as published."""
    place = folder.first(DEVKIT_ARCHIVE, META)
    if place == META:
        meta, truth = (storage.read_bytes(folder.at(folder.first(path))) for path in (META, TRUTH))
        return _truth(folder, place, meta, truth)
    content = io.BytesIO(storage.read_bytes(folder.at(DEVKIT_ARCHIVE)))
    try:
        with tarfile.open(fileobj=content) as kit:
            files = [kit.extractfile(name) for name in (META, TRUTH)]
            meta, truth = (file.read() if file else b"" for file in files)
    except (tarfile.TarError, *_DAMAGED) as error:
        raise folder.broken(DEVKIT_ARCHIVE, f"cannot be unpacked ({error}); fetch it again") from error
    return _truth(folder, place, meta, truth)


def _truth(folder: Folder, place: str, meta: bytes, truth: bytes) -> Truth:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        named = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if one["num_children"] == 0}
        return Truth(sorted(named.values()), [named[int(number)] for number in truth.split()])
    except (MatReadError, *_DAMAGED) as error:
        raise folder.broken(place, f"does not say the classes of the images ({error!r}); fetch it again") from error
