"""What tests read of a source of images, and the small files that they read."""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images import (
    ExistingRow,
    RejectedRow,
    containers_of,
    digest_of,
    iter_images,
    iter_rows,
    read_image,
)
from lotlip_data.pipeline.url_lists.rows import BadRow


@dataclass
class Result:
    """The rows of all containers of a source."""

    containers: list[Container] = field(default_factory=list)
    rows: list[ExistingRow] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)

    @property
    def images(self) -> dict[str, bytes | None]:
        return {row.name: row.image for row in self.rows}

    @property
    def texts(self) -> dict[str, tuple[str, ...]]:
        return {row.name: row.texts for row in self.rows}

    @property
    def reasons(self) -> dict[str, str]:
        return {row.name: row.reason for row in self.rejected}


def source(files: object, **settings: Any) -> Source:
    return Source.parse({"name": "mine", "files": str(files)} | settings)


def read(own: Source, samples_per_shard: int = 1000, seed: int = 0) -> Result:
    """Read a source in every way that there is, which must agree."""
    result = Result()
    for container in containers_of(own, samples_per_shard, seed, result.bad_rows.append):
        assert artifacts.parse_json(json.dumps(asdict(container)).encode(), "", "", Container) == container
        result.containers.append(container)
        digests: list[Digest] = []
        rows = list(iter_rows(container, own, digested=digests.append))
        assert [row.row for row in rows] == list(range(len(rows)))
        assert container.rows in (None, len(rows))
        without_images = [(row.row, row.name) for row in iter_rows(container, own, images=False)]
        assert without_images == [(row.row, row.name) for row in rows], "names do not depend on images"
        usable = [row for row in rows if isinstance(row, ExistingRow)]
        images = {image.name: image for image in iter_images(container, recorded=digests[0])}
        assert len({row.name for row in usable}) == len(usable), "a name stands once in a container"
        assert all((images[row.name].row, images[row.name].image) == (row.row, row.image) for row in usable)
        assert digest_of(container) == digests[0]
        assert all(read_image(container, row.name) == row.image for row in usable[:5])
        result.rows += usable
        result.rejected += [row for row in rows if isinstance(row, RejectedRow)]
    return result


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            add(tar, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        member.linkname = "/etc/passwd"
    tar.addfile(member, io.BytesIO(content))
