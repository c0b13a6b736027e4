"""ImageNet-1k's validation images, with open_clip's class names and CLIP's 80 templates.

Class c is the c-th WordNet id in alphabetical order. Two layouts: folders named by WordNet id (what torchvision and
valprep.sh make of the archive), or Kaggle's, a flat folder with LOC_val_solution.csv and LOC_synset_mapping.txt.
"""

import csv
import re
from collections.abc import Iterator, Sequence

from lotlip_data.training.eval_tasks.base import Record, Task
from lotlip_data.training.eval_tasks.files import Folder, TaskDataError

CLASSES = 1000
KAGGLE = "ILSVRC/Data/CLS-LOC/val"
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
WHERE = (
    "Get ILSVRC2012_img_val.tar (md5 29b22e2961454d5413ddabcf34fc5622) from https://image-net.org/download-images, "
    "sorted into FOLDER/val/n01440764/*.JPEG and so on, as torchvision.datasets.ImageNet does; or Kaggle's "
    f"imagenet-object-localization-challenge: FOLDER/{KAGGLE}/*.JPEG, FOLDER/{SOLUTION} and FOLDER/{MAPPING}"
)
_WORDNET_ID = re.compile(r"n\d{8}")


def read(folder: Folder) -> Iterator[Record]:
    return _kaggle(folder) if folder.has(SOLUTION) else _folders(folder)


def _folders(folder: Folder) -> Iterator[Record]:
    root = "val/" if folder.has("val") else ""
    ids = sorted(name for name in folder.names(root.rstrip("/")) if _WORDNET_ID.fullmatch(name))
    if len(ids) != CLASSES:
        raise folder.broken(root, f"holds {len(ids)} folders named by WordNet ids, and {CLASSES} are needed")
    for label, wordnet_id in enumerate(ids):
        for name in sorted(folder.names(f"{root}{wordnet_id}")):
            if name.lower().endswith((".jpeg", ".jpg")):
                yield Record((f"{root}{wordnet_id}/{name}",), label=label)


def _kaggle(folder: Folder) -> Iterator[Record]:
    ids = sorted(line.split()[0] for line in folder.text(MAPPING).splitlines() if line.strip())
    if len(ids) != CLASSES or len(set(ids)) != CLASSES:
        raise folder.broken(MAPPING, f"names {len(set(ids))} classes, not {CLASSES}")
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    for row in csv.DictReader(folder.text(SOLUTION).splitlines()):
        image, boxes = (folder.field(row, SOLUTION, name) for name in ("ImageId", "PredictionString"))
        wordnet_id = boxes.split(" ")[0]
        if wordnet_id not in labels:
            raise folder.broken(SOLUTION, f"has {image} of the class {wordnet_id!r}, which {MAPPING} does not name")
        yield Record((f"{KAGGLE}/{image}.JPEG", f"val/{image}.JPEG"), label=labels[wordnet_id])


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
        if len(names) != CLASSES:
            raise folder.broken("classnames.txt", f"has {len(names)} lines, not {CLASSES}")
    return names, [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


IMAGENET = Task("imagenet", "ImageNet", "classification", 50_000, 0, WHERE, read, classes=classes)
