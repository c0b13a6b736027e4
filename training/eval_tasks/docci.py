"""DOCCI's test split: 5,000 images with descriptions by people. Not in the paper."""

from collections.abc import Iterator

from lotlip_data.training.eval_tasks.base import Record, Task
from lotlip_data.training.eval_tasks.files import Folder

FILE = "docci_descriptions.jsonlines"
WHERE = (
    f"Get https://storage.googleapis.com/docci/data/{FILE} to FOLDER/{FILE} and "
    "https://storage.googleapis.com/docci/data/docci_images.tar.gz, unpacked to FOLDER/images/test_*.jpg"
)


def read(folder: Folder) -> Iterator[Record]:
    for entry in folder.json_lines(FILE):
        name = folder.field(entry, FILE, "example_id")
        if folder.field(entry, FILE, "split") == "test" and name.startswith("test"):
            image = folder.field(entry, FILE, "image_file")
            yield Record((f"images/{image}", image), (folder.field(entry, FILE, "description"),))


DOCCI = Task("docci", "DOCCI", "long", 5_000, 1, WHERE, read)
