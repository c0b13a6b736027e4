"""Sources of images on a disk, an S3 server and web servers have the same containers and rows, in the same order."""

import contextlib
import http.server
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images import containers_of, iter_rows, read_image
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.faults.s3 import BUCKET, s3_server
from tests.pipeline.existing_images.read_containers import Result, read, source, write_tar
from tests.support.web_server import serving

TARS = [f"tars/000{number:02}.tar" for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one source of each kind, of the same three images each."""
    folder = tmp_path / "data"
    for name in ("tars", "images/sub", "tables"):
        (folder / name).mkdir(parents=True)
    images = [bytes([65 + number]) * 300_000 for number in range(3)]
    for number, image in enumerate(images):
        members = [(f"{number}.jpg", image), (f"{number}.txt", b"text %d" % number)]
        write_tar(folder / TARS[number], members)
        (folder / "images" / "sub" / f"{number}.jpg").write_bytes(image)
        (folder / "images" / "sub" / f"{number}.txt").write_text(f"text {number}")
    table = pa.table({"image": images, "caption": [f"text {number}" for number in range(3)]})
    pq.write_table(table, folder / "tables" / "t.parquet", row_group_size=1)
    with pa.OSFile(str(folder / "tables" / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return folder


SETTINGS: dict[str, dict[str, Any]] = {
    "tars/*.tar": {},
    "tars/{00000..00002}.tar": {},
    "tables/t.parquet": {"format": "image-table"},
    "tables/t.arrow": {},
    "images": {"format": "image-folder"},
}
TEXTS = [(f"text {number}",) for number in range(3)]


def read_at(url: str, name: str) -> Result:
    result = read(source(f"{url}/{name}", **SETTINGS[name]), samples_per_shard=2)
    assert [row.texts for row in sorted(result.rows, key=lambda row: row.name)] == TEXTS
    assert result.rejected == result.bad_rows == []
    return result


def check_like_local(url: str, folder: Path, name: str) -> None:
    """A remote Arrow file is one container, which is why its rows have other numbers than those of a local one."""
    remote, local = read_at(url, name), read_at(str(folder), name)
    assert remote.images == local.images and remote.texts == local.texts
    if name != "tables/t.arrow":
        assert remote.rows == local.rows
        assert [each.url.removeprefix(url) for each in remote.containers] == [
            each.url.removeprefix(str(folder)) for each in local.containers
        ]


def test_sources_on_an_s3_server_are_those_of_the_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        url = f"s3://{BUCKET}/data"
        for path in storage.list_below(str(folder)):
            storage.create_from_file(f"{url}/{path}", str(folder / path))
        for name in SETTINGS:
            check_like_local(url, folder, name)
        (container,) = containers_of(source(f"{url}/tables/t.arrow"), 2)
        assert container.rows is None, "a remote Arrow file is read as a whole"
        with pytest.raises(ListError, match=r"/data/none: there is no such folder"):
            list(containers_of(source(f"{url}/none", format="image-folder"), 2))
        with pytest.raises(ListError, match=r"/data/none\*\.tar: no file matches"):
            list(containers_of(source(f"{url}/none*.tar"), 2))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without ranges. `/strict/` refuses names with braces, as S3 refuses those of no object. `/short/`
    and `/unsized/` break off in the body; only the first has a size."""

    def do_HEAD(self) -> None:
        self.answer(super().do_HEAD, with_body=False)

    def do_GET(self) -> None:
        self.answer(super().do_GET, with_body=True)

    def answer(self, usual: Callable[[], None], with_body: bool) -> None:
        kind = self.path.split("/")[1]
        if kind == "strict" and "{" in unquote(self.path):
            self.send_error(403)
            return
        self.path = self.path.removeprefix("/strict")
        if kind not in ("short", "unsized"):
            with contextlib.suppress(ConnectionError):  # the client has read enough
                usual()
            return
        body = (Path(self.directory) / self.path.removeprefix(f"/{kind}/")).read_bytes()
        self.send_response(200)
        if kind == "short":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with serving(partial(Handler, directory=str(folder))) as url:
        yield url


@pytest.mark.parametrize("name", list(SETTINGS)[:4])
def test_sources_on_a_web_server_are_those_of_the_disk(folder: Path, server: str, name: str) -> None:
    check_like_local(server, folder, name)


def test_braces_are_expanded_on_a_server_that_refuses_unknown_names(server: str) -> None:
    own = source(f"{server}/strict/tars/{{00000..00002}}.tar")
    assert [each.url.rpartition("/")[2] for each in containers_of(own, 10)] == ["00000.tar", "00001.tar", "00002.tar"]


def test_a_web_server_that_breaks_off_is_an_error_and_not_a_short_tar(server: str) -> None:
    """Where the server reports the size, the connection was lost, which is worth a retry; else the tar is cut off."""
    for kind, error_type in (("short", OSError), ("unsized", UserError)):
        own = source(f"{server}/{kind}/{TARS[0]}")
        (container,) = containers_of(own, 10)
        with pytest.raises(error_type, match=TARS[0]):
            list(iter_rows(container, own))


@pytest.mark.parametrize("name", ["large.parquet", "large.arrow"])
def test_a_table_on_a_server_that_sends_only_whole_files_is_an_error_with_the_remedy(
    folder: Path, server: str, name: str
) -> None:
    (folder / name).write_bytes((b"PAR1" if name.endswith("parquet") else b"ARROW1") + bytes(6 << 20))
    with pytest.raises(ListError, match="its server sends only whole files; download it to read it as a table"):
        list(containers_of(source(f"{server}/{name}", format="image-table"), 10))


def test_files_keep_the_order_of_the_manifest_and_patterns_are_sorted(folder: Path) -> None:
    own = Source.parse({"name": "mine", "files": [f"{folder}/{TARS[2]}", f"{folder}/tars/0000{{1,0}}.tar"]})
    assert [Path(each.url).name for each in containers_of(own, 10)] == ["00002.tar", "00001.tar", "00000.tar"]


def test_a_file_that_several_patterns_match_is_read_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, settings in (("tars/{*,00001}.tar", {}), ("tables/{t,t}.parquet", {"format": "image-table"})):
        caplog.clear()
        containers = list(containers_of(source(folder / name, **settings), 10))
        assert len({each.url for each in containers}) == len(containers) == (3 if "tars" in name else 1)
        (warning,) = [record.getMessage() for record in caplog.records]
        assert warning == "mine: `files` names 1 file twice; each is read once"


def test_a_tar_that_is_missing_is_named_before_anything_is_read(folder: Path) -> None:
    own = source(f"{folder}/tars/{{00000..00003}}.tar")
    with pytest.raises(ListError, match=r"00003\.tar: there is no such file"):
        list(containers_of(own, 10))


def test_a_folder_that_is_no_dataset_is_an_error_with_the_remedy(folder: Path) -> None:
    with pytest.raises(
        ListError, match=r"tables: is a folder, but not one that `save_to_disk` .* name the files in it"
    ):
        list(containers_of(source(folder / "tables", format="image-table"), 10))
    with pytest.raises(ListError, match=r"tars: is a folder; name the files in it"):
        list(containers_of(source(folder / "tars", format="webdataset"), 10))


def test_a_file_of_another_kind_is_named(folder: Path) -> None:
    (folder / "x.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 100)
    with pytest.raises(ListError, match=r"x\.parquet: is a Git LFS pointer"):
        list(containers_of(source(folder / "x.parquet", format="image-table"), 10))


def test_one_image_is_read_by_its_name_from_every_kind(folder: Path) -> None:
    names = {"tars/*.tar": "0.jpg", "tables/t.parquet": "0", "tables/t.arrow": "0", "images": "sub/0.jpg"}
    for name, image in names.items():
        containers = list(containers_of(source(folder / name, **SETTINGS[name]), 10))
        assert read_image(containers[0], image) == b"A" * 300_000
