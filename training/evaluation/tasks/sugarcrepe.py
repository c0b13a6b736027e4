"""SugarCrepe and SugarCrepe++: captions of MSCOCO's validation images and hard negatives, by the kind of the change.

SugarCrepe (RAIVNLab/sugar-crepe) has one right and one wrong caption per query: `data/CATEGORY.json` is an object of
records {"filename", "caption", "negative_caption"}. SugarCrepe++ (Sri-Harsha/scpp) has a second right caption in other
words: `data/CATEGORY.json` is a list of {"id", "filename", "caption", "caption2", "negative_caption"}. In both, an
image is compared as a whole. The numbers of queries and the checksums are those of the files in the repositories, at
0047054 and c083bbf.
"""

import functools
from collections.abc import Iterator, Mapping

from lotlip_data.training.evaluation.selection import Choice
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder

IMAGES_URL = "http://images.cocodataset.org/zips/val2017.zip"
IMAGE_FOLDERS = ("val2017", "images/val2017", "coco/val2017", "images")
"""Where the images may be, besides the folder itself."""
SUGARCREPE_QUERIES = {
    "add_att": 692,
    "add_obj": 2_062,
    "replace_att": 788,
    "replace_obj": 1_652,
    "replace_rel": 1_406,
    "swap_att": 666,
    "swap_obj": 245,
}
SUGARCREPE_PP_QUERIES = {name: SUGARCREPE_QUERIES[name] for name in list(SUGARCREPE_QUERIES)[2:]}
SUGARCREPE_CHECKSUMS = {
    "data/add_att.json": "sha256:012d88d729693d193760e6f3393b06a1cf874380a9db0062e937201199fe044d",
    "data/add_obj.json": "sha256:1b9d76b93139a937b8dc1ada92a4f05ecc821bb3c291d752428bafadd4bb0682",
    "data/replace_att.json": "sha256:9fe55fd4c0a9ad1f85d486d9f6d0215b41f867eb025026e7f7b5ce44352545ee",
    "data/replace_obj.json": "sha256:9d299600639947e9d15281a9ded1382b376cf4ea088a8d08a1314bfe76e81898",
    "data/replace_rel.json": "sha256:356bcc2fc4c6aed3f4d9fd50acc58489bb1fe70c28791f9368d4cbf9ea39cdc9",
    "data/swap_att.json": "sha256:7a7ce04e5c4c80412b48c6f0c1347fb1a2f5d54c0be6aa429b64d390e442f8d0",
    "data/swap_obj.json": "sha256:073cdb8e253d053614e80710834d9773b09dbc1dd0a412f6f9492262caa1dcad",
}
SUGARCREPE_PP_CHECKSUMS = {
    "data/replace_att.json": "sha256:6826413592894754eeca02aeebbcbbc8b95a7456998abcc714e71c033ce6fe87",
    "data/replace_obj.json": "sha256:5c6dc499ec8f511a8aa4ec1b7b5eb0eca90317488abe36ec39573355e2d361ab",
    "data/replace_rel.json": "sha256:040fb95d3f0619bf515db60879e99709a87a5e9b4f524ec3403b127243480fd4",
    "data/swap_att.json": "sha256:450d0fd9fcad3e6f44950dc634e7f901ab1c6d9c60a569ade5ae8ffb3d203ad8",
    "data/swap_obj.json": "sha256:5f33cae824de431a7ecd3c5de6301f689815f9497aa36d96b154bbaf117b201b",
}


def read_records(
    folder: Folder, categories: Mapping[str, int], right: tuple[str, ...], as_list: bool
) -> Iterator[Record]:
    """One record per query, category by category.

    Args:
        folder: The folder of the set.
        categories: The names of the files, without the ending.
        right: The fields of the right captions.
        as_list: Whether the records of a file are a list, as in SugarCrepe++, or the fields of an object.
    """
    for category in categories:
        content = folder.read_json(folder.first_existing(f"data/{category}.json", f"{category}.json"))
        for entry in content.items() if as_list else content.fields():
            name = entry.field("filename").text()
            captions = tuple(entry.field(field).text() for field in right)
            yield Record(
                image_paths=(*(f"{image_folder}/{name}" for image_folder in IMAGE_FOLDERS), name),
                source=entry.location,
                choice=Choice(category, captions, (entry.field("negative_caption").text(),)),
            )


def _where(repository: str) -> str:
    return (
        f"Put the folder `data` of https://github.com/{repository} into FOLDER, so that the captions are "
        f"FOLDER/data/*.json. Download {IMAGES_URL} and unpack it, so that the images are FOLDER/val2017/*.jpg."
    )


SUGARCREPE = Task(
    name="sugarcrepe",
    title="SugarCrepe",
    kind="selection",
    where=_where("RAIVNLab/sugar-crepe"),
    read_records=functools.partial(read_records, categories=SUGARCREPE_QUERIES, right=("caption",), as_list=False),
    categories=SUGARCREPE_QUERIES,
    checksums=SUGARCREPE_CHECKSUMS,
    distinct_images=False,
)
SUGARCREPE_PP = Task(
    name="sugarcrepe-pp",
    title="SugarCrepe++",
    kind="selection",
    where=_where("Sri-Harsha/scpp"),
    read_records=functools.partial(
        read_records, categories=SUGARCREPE_PP_QUERIES, right=("caption", "caption2"), as_list=True
    ),
    categories=SUGARCREPE_PP_QUERIES,
    has_text_only=True,
    checksums=SUGARCREPE_PP_CHECKSUMS,
    distinct_images=False,
)
