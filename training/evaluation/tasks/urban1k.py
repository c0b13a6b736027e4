"""Urban-1k: 1,000 busy street scenes of Visual Genome with long texts by GPT-4V (Long-CLIP). Not in the paper.

One file a text; Long-CLIP's code and the authors' take its first line.
"""

from collections.abc import Iterator

from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

CHECKSUMS = {"Urban1k.zip": "sha256:08e42b3fada77abf7f890a087ed6e9f9fbba1dc143f9f09801ed83187ae617b8"}
WHERE = (
    "Get https://huggingface.co/datasets/BeichenZhang/Urban1k/resolve/main/Urban1k.zip "
    f"({CHECKSUMS['Urban1k.zip']}) and unpack it: "
    "FOLDER/Urban1k/caption/*.txt and FOLDER/Urban1k/image/*.jpg"
)


def read(folder: Folder) -> Iterator[Record]:
    root = "Urban1k/" if folder.has("Urban1k") else ""
    folder.first(f"{root}caption")
    texts, images = (
        {name.removesuffix(end) for name in folder.names(f"{root}{kind}") if name.endswith(end)}
        for kind, end in (("caption", ".txt"), ("image", ".jpg"))
    )
    for name in sorted(texts | images):
        path = f"{root}caption/{name}.txt"
        lines = (folder.text(path).split("\n")[0].strip(),) if name in texts else ()
        yield Record((f"{root}image/{name}.jpg",), path, lines)


URBAN_1K = Task("urban-1k", "Urban-1k", "long", 1_000, 1, WHERE, read, checksums=CHECKSUMS)
