"""Urban-1k: 1,000 busy street scenes of Visual Genome with long texts by GPT-4V (Long-CLIP). Not in the paper.

Each text is a file of its own; its first line is used, as in Long-CLIP's and the authors' code.
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

CHECKSUMS = {"Urban1k.zip": "sha256:08e42b3fada77abf7f890a087ed6e9f9fbba1dc143f9f09801ed83187ae617b8"}
WHERE = (
    "Download https://huggingface.co/datasets/BeichenZhang/Urban1k/resolve/main/Urban1k.zip "
    f"({CHECKSUMS['Urban1k.zip']}) and unpack it, so that the texts are FOLDER/Urban1k/caption/*.txt and the images "
    "FOLDER/Urban1k/image/*.jpg."
)


def read_records(folder: Folder) -> Iterator[Record]:
    """One record per text or image, in the order of their names. An image without a text file has no texts."""
    root = "Urban1k/" if folder.has("Urban1k") else ""
    folder.first_existing(f"{root}caption")
    texts, images = (
        {name.removesuffix(ending) for name in folder.names(f"{root}{subfolder}") if name.endswith(ending)}
        for subfolder, ending in (("caption", ".txt"), ("image", ".jpg"))
    )
    for name in sorted(texts | images):
        source = f"{root}caption/{name}.txt"
        first_line = (folder.read_text(source).split("\n")[0].strip(),) if name in texts else ()
        yield Record(image_paths=(f"{root}image/{name}.jpg",), source=source, texts=first_line)


URBAN_1K = Task(
    name="urban-1k",
    title="Urban-1k",
    kind="long",
    images=1_000,
    texts_per_image=1,
    where=WHERE,
    read_records=read_records,
    checksums=CHECKSUMS,
)
