"""DOCCI: the 5,000 images of the test split, with descriptions by people. Not in the paper."""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

FILE = "docci_descriptions.jsonlines"
WHERE = (
    f"Download https://storage.googleapis.com/docci/data/{FILE} to FOLDER/{FILE}. Download "
    "https://storage.googleapis.com/docci/data/docci_images.tar.gz and unpack it, so that the images are "
    "FOLDER/images/test_*.jpg."
)


def read_records(folder: Folder) -> Iterator[Record]:
    """One record per description of the test split, in the order of the file."""
    for entry in folder.read_json_lines(FILE):
        name = entry.field("example_id").text()
        if entry.field("split").text() == "test" and name.startswith("test"):
            image = entry.field("image_file").text()
            yield Record(
                image_paths=(f"images/{image}", image),
                source=entry.location,
                texts=(entry.field("description").text(),),
            )


DOCCI = Task(
    name="docci",
    title="DOCCI",
    kind="long",
    images=5_000,
    texts_per_image=1,
    where=WHERE,
    read_records=read_records,
)
