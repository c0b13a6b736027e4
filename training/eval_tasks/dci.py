"""DCI, Densely Captioned Images: 7,805 images of SA-1B, each with a short caption and an extra one by a person.

`splits.json` names the annotations of each split; the authors' evaluation takes all splits, and as text the short
caption, a line break, and the extra caption.
"""

from collections.abc import Iterator

from lotlip_data.training.eval_tasks.base import Record, Task
from lotlip_data.training.eval_tasks.files import Folder

ROOT = "densely_captioned_images"
WHERE = (
    "Get https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz (sha256 9caff10cb6324c801d9020638f49925f"
    f"04de87d897ca8614c599f3c43bef3aeb), which has FOLDER/{ROOT}/splits.json and annotations/*.json, and sa_000138.tar "
    "of SA-1B (https://ai.meta.com/datasets/segment-anything-downloads), whose sa_*.jpg go to "
    f"FOLDER/{ROOT}/photos"
)


def read(folder: Folder) -> Iterator[Record]:
    splits = folder.first(f"{ROOT}/splits.json", "splits.json")
    root = splits.removesuffix("splits.json")
    for names in folder.json(splits).values():
        for name in names:
            path = f"{root}annotations/{name}"
            entry = folder.json(path)
            image, short, extra = (
                folder.field(entry, path, key) for key in ("image", "short_caption", "extra_caption")
            )
            yield Record((f"{root}photos/{image}",), (f"{short}\n{extra}",))


DCI = Task("dci", "DCI", "long", 7805, 1, WHERE, read, row=(10.81, 172.73))
