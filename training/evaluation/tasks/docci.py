"""DOCCI's test split: 5,000 images with descriptions by people. Not in the paper."""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

FILE = "docci_descriptions.jsonlines"
WHERE = (
    f"Get https://storage.googleapis.com/docci/data/{FILE} to FOLDER/{FILE} and "
    "https://storage.googleapis.com/docci/data/docci_images.tar.gz, unpacked to FOLDER/images/test_*.jpg"
)


def read(folder: Folder) -> Iterator[Record]:
    for entry in folder.json_lines(FILE):
        name = entry.field("example_id").text()
        if entry.field("split").text() == "test" and name.startswith("test"):
            image = entry.field("image_file").text()
            yield Record((f"images/{image}", image), entry.place, (entry.field("description").text(),))


DOCCI = Task("docci", "DOCCI", "long", 5_000, 1, WHERE, read)
