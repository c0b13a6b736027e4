"""IIW, ImageInWords: the 612 images that people described at length, in three parts from three sources of images.

As published, or as the authors' script lays the images out (folders docci_aar, docci and dci).
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.dci import PHOTOS
from lotlip_data.training.evaluation.tasks.files import Folder

IMAGES = {
    "IIW-400": ("images_aar", "docci_aar"),
    "DOCCI_Test": ("images", "docci"),
    "DCI_Test": ("densely_captioned_images/photos", "dci"),
}
CHECKSUMS = {
    "IIW-400/data.jsonl": "sha256:88809dde73731208fa98f72430225a9122c8f7e3c4ebcde98e255d62c5f203f2",
    "DOCCI_Test/data.jsonl": "sha256:f422b726c1af21a5154282cf8790ce110e03d5c94457d77d7002a50f17c984d1",
    "DCI_Test/data.jsonl": "sha256:59ec2a3b5c3885a3313b73656d57db2bf9861d48e4414b0692833ba9380a2cf1",
}
"""Of the texts that have the paper's statistics: 612 texts, 10.16 sub-captions and 239.73 tokens each."""
WHERE = (
    "Get https://github.com/google/imageinwords/tree/main/datasets, FOLDER/{IIW-400,DOCCI_Test,DCI_Test}/data.jsonl; "
    "https://storage.googleapis.com/docci/data/docci_images.tar.gz and docci_images_aar.tar.gz, unpacked to "
    f"FOLDER/images and FOLDER/images_aar; and {PHOTOS}"
)


def read(folder: Folder) -> Iterator[Record]:
    for part, places in IMAGES.items():
        for entry in folder.json_lines(f"{part}/data.jsonl"):
            image = entry.field("image", "image/key").text()
            name = image if image.endswith(".jpg") else f"{image}.jpg"
            # Some images are published under DOCCI's training split: the authors' script looks there next.
            other = name.replace("test", "train")
            yield Record(
                tuple(f"{place}/{name}" for place in places),
                entry.place,
                (entry.field("IIW").text(),),
                substitutes=tuple(f"{place}/{other}" for place in places if other != name),
            )


IIW = Task("iiw", "IIW", "long", 612, 1, WHERE, read, row=(10.16, 239.73), checksums=CHECKSUMS)
