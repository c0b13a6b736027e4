"""Cuts the files of a source of images into containers, from listings and the metadata of tables alone."""

from collections.abc import Iterator

from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images.side_files import IMAGE_EXTENSIONS
from lotlip_data.pipeline.url_lists.files import files_of


def containers_of(source: Source, samples_per_shard: int, seed: int = 0) -> Iterator[Container]:
    """The containers of a source of images that exist, in the order of its files.

    A tar is one container. The order is the same each time, as long as the files are.

    Args:
        source: The source; its images exist.
        samples_per_shard: About the number of rows of a container that is a part of a table or a folder.
        seed: Seed of the order in which the files of a folder are distributed over its containers.

    Raises:
        ListError: A file or a folder is missing, or is none.
        StorageError: A server does not answer, or refuses.
    """
    for file in files_of(source):
        yield Container("tar", file, image=tuple(_extension(name) for name in source.image or IMAGE_EXTENSIONS))


def _extension(name: str) -> str:
    return name.removeprefix(".").lower()
