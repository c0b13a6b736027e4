"""Images of folders and datasets have names, and stamps that change when they do."""

import os
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from lotlip_data.training.data.image_files import DatasetImages, FolderImages
from tests.training.run_fixture import write_run


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.jpg", "a/2.PNG", "a/b/3.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def test_the_images_of_all_folders_are_named_and_nothing_else(folder):
    assert {name for name, _ in FolderImages(str(folder)).stamps()} == {"1.jpg", "a/2.PNG", "a/b/3.webp"}


def test_links_to_folders_are_not_followed_and_links_to_nothing_cannot_be_read(folder):
    (folder / "a" / "circle.jpg").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    images = FolderImages(str(folder))
    assert len(dict(images.stamps())) == 4 and "gone.jpg" in dict(images.stamps())
    assert isinstance(images.read("gone.jpg"), str)


@pytest.mark.parametrize("change", ["size", "time"])
def test_the_stamp_changes_with_size_and_with_time(folder, change):
    before = dict(FolderImages(str(folder)).stamps())
    status = (folder / "1.jpg").stat()
    if change == "size":
        (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes() + b"0")
        os.utime(folder / "1.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(folder / "1.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = dict(FolderImages(str(folder)).stamps())
    assert [name for name in before if before[name] != after[name]] == ["1.jpg"]


def test_images_are_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    image = FolderImages(str(tmp_path)).read("turned.jpg")
    assert (image.size, image.mode) == ((4, 8), "RGB")


def test_what_cannot_be_read_has_a_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-40])
    files = FolderImages(str(tmp_path))
    assert files.read("text.jpg") == "is not an image, or its format is not supported"
    assert isinstance(files.read("cut.png"), str) and isinstance(files.read("nowhere.jpg"), str)


def test_a_folder_of_an_object_store_is_listed_too():
    with fsspec.open("memory://photos/a/1.jpg", "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "JPEG")
    files = FolderImages("memory://photos")
    assert [name for name, _ in files.stamps()] == ["a/1.jpg"] and files.read("a/1.jpg").size == (8, 8)


def test_the_samples_of_a_dataset_are_named_by_shard_and_key(tmp_path):
    files = DatasetImages(write_run(tmp_path / "run", (3, 2)))
    stamps = dict(files.stamps())
    assert list(stamps) == [f"train-{name}" for name in ("00000/000000000", "00000/000000001", "00000/000000002")] + [
        "train-00001/000010000",
        "train-00001/000010001",
    ]
    assert len(set(stamps.values())) == 2 and files.read("train-00001/000010001").size == (96, 96)
