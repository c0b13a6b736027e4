"""DCI, Densely Captioned Images: 7,805 images of SA-1B, each with a short caption and an extra caption by a person.

`splits.json` names the annotations of each split. As in the authors' evaluation, all splits are used, and the text is
the short caption, a line break, and the extra caption.
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

ROOT = "densely_captioned_images"
CHECKSUMS = {"dci.tar.gz": "sha256:d865c244150168d3f25daaad0bf5b70b2123cf3e83ca7b0e207d5b26943c5fc7"}
WHERE_PHOTOS = (
    "Download sa_000138.tar of SA-1B (https://ai.meta.com/datasets/segment-anything-downloads) and put its sa_*.jpg "
    f"into FOLDER/{ROOT}/photos."
)
WHERE = (
    "Download https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz "
    f"({CHECKSUMS['dci.tar.gz']}) and unpack it, so that the annotations are FOLDER/{ROOT}/splits.json and "
    f"FOLDER/{ROOT}/annotations/*.json. {WHERE_PHOTOS}"
)


def read_records(folder: Folder) -> Iterator[Record]:
    """One record per annotation, in the order of `splits.json`.

    The image of an annotation that does not exist is unknown: the annotation is then reported as a missing image.
    """
    splits = folder.first_existing(f"{ROOT}/splits.json", "splits.json")
    root = splits.removesuffix("splits.json")
    for split in folder.read_json(splits).fields():
        for name in split.items():
            source = f"{root}annotations/{name.text()}"
            if not folder.has(source):
                yield Record(image_paths=(source,), source=source)
                continue
            entry = folder.read_json(source)
            image, short, extra = (entry.field(key).text() for key in ("image", "short_caption", "extra_caption"))
            yield Record(image_paths=(f"{root}photos/{image}",), source=source, texts=(f"{short}\n{extra}",))


DCI = Task(
    name="dci",
    title="DCI",
    kind="long",
    images=7_805,
    texts_per_image=1,
    where=WHERE,
    read_records=read_records,
    table_1_row=(10.81, 172.73),
    checksums=CHECKSUMS,
)
