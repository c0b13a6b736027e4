"""DCI, Densely Captioned Images: 7,805 images of SA-1B, each with a short caption and an extra one by a person.

`splits.json` names the annotations of each split; the authors' evaluation takes all splits, and as text the short
caption, a line break, and the extra caption.
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

ROOT = "densely_captioned_images"
CHECKSUMS = {"dci.tar.gz": "sha256:9caff10cb6324c801d9020638f49925f04de87d897ca8614c599f3c43bef3aeb"}
PHOTOS = (
    "sa_000138.tar of SA-1B (https://ai.meta.com/datasets/segment-anything-downloads), whose sa_*.jpg go to "
    f"FOLDER/{ROOT}/photos"
)
WHERE = (
    "Get https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz "
    f"({CHECKSUMS['dci.tar.gz']}), which has FOLDER/{ROOT}/splits.json and annotations/*.json, and {PHOTOS}"
)


def read(folder: Folder) -> Iterator[Record]:
    splits = folder.first(f"{ROOT}/splits.json", "splits.json")
    root = splits.removesuffix("splits.json")
    for split in folder.json(splits).fields():
        for name in split.items():
            path = f"{root}annotations/{name.text()}"
            if not folder.has(path):
                yield Record((path,), path)  # its image is missing, since nothing names it
                continue
            entry = folder.json(path)
            image, short, extra = (entry.field(key).text() for key in ("image", "short_caption", "extra_caption"))
            yield Record((f"{root}photos/{image}",), path, (f"{short}\n{extra}",))


DCI = Task("dci", "DCI", "long", 7805, 1, WHERE, read, row=(10.81, 172.73), checksums=CHECKSUMS)
