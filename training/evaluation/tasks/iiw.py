"""IIW, ImageInWords: 612 images with long descriptions by people, in three parts from three sources of images.

The images may be where their publishers put them, or in the folders of the authors' script (docci_aar, docci, dci).
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.dci import WHERE_PHOTOS
from lotlip_data.training.evaluation.tasks.files import Folder

IMAGE_FOLDERS = {
    "IIW-400": ("images_aar", "docci_aar"),
    "DOCCI_Test": ("images", "docci"),
    "DCI_Test": ("densely_captioned_images/photos", "dci"),
}
"""Where the images of each part may be."""
CHECKSUMS = {
    "IIW-400/data.jsonl": "sha256:88809dde73731208fa98f72430225a9122c8f7e3c4ebcde98e255d62c5f203f2",
    "DOCCI_Test/data.jsonl": "sha256:f422b726c1af21a5154282cf8790ce110e03d5c94457d77d7002a50f17c984d1",
    "DCI_Test/data.jsonl": "sha256:59ec2a3b5c3885a3313b73656d57db2bf9861d48e4414b0692833ba9380a2cf1",
}
"""Of the texts that have the paper's statistics: 612 texts, 10.16 sub-captions and 239.73 tokens each."""
WHERE = (
    "Download the files data.jsonl of https://github.com/google/imageinwords/tree/main/datasets to "
    "FOLDER/{IIW-400,DOCCI_Test,DCI_Test}/data.jsonl. Download "
    "https://storage.googleapis.com/docci/data/docci_images.tar.gz and docci_images_aar.tar.gz, and unpack them, "
    f"so that the images are FOLDER/images/*.jpg and FOLDER/images_aar/*.jpg. {WHERE_PHOTOS}"
)


def read_records(folder: Folder) -> Iterator[Record]:
    """One record per description, part by part."""
    for part, image_folders in IMAGE_FOLDERS.items():
        for entry in folder.read_json_lines(f"{part}/data.jsonl"):
            image = entry.field("image", "image/key").text()
            name = image if image.endswith(".jpg") else f"{image}.jpg"
            # Some images are published in DOCCI's training split: the authors' script looks there next.
            train_name = name.replace("test", "train")
            yield Record(
                image_paths=tuple(f"{image_folder}/{name}" for image_folder in image_folders),
                source=entry.location,
                texts=(entry.field("IIW").text(),),
                substitute_paths=tuple(
                    f"{image_folder}/{train_name}" for image_folder in image_folders if train_name != name
                ),
            )


IIW = Task(
    name="iiw",
    title="IIW",
    kind="long",
    images=612,
    texts_per_image=1,
    where=WHERE,
    read_records=read_records,
    table_1_row=(10.16, 239.73),
    checksums=CHECKSUMS,
)
