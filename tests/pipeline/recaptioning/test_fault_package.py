"""The faults that other tests inject do what they are documented to do."""

import json

import pytest
from PIL import Image

from tests.faults.captioner import hash_of
from tests.faults.filesystem import FAILURES, RECENT, FaultyFileSystem


def test_one_image_has_one_hash() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert hash_of(red) == hash_of(red.copy()) != hash_of(blue)


def test_the_file_system_fails_at_the_rate_that_is_set(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOTLIP_FAULTS", str(tmp_path))
    disk = FaultyFileSystem()
    disk.pipe_file(f"faulty://{tmp_path}/a", b"a")
    (tmp_path / "storage").write_text(json.dumps({"full": True}))
    with pytest.raises(OSError, match="No space left"):
        disk.pipe_file(f"faulty://{tmp_path}/b", b"b")
    assert disk.cat_file(f"{tmp_path}/a") == b"a"
    (tmp_path / "storage").write_text(json.dumps({"rate": 1.0}))
    with pytest.raises(OSError, match="reset"):
        disk.ls(str(tmp_path))


def test_the_file_system_never_fails_too_often_in_a_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOTLIP_FAULTS", str(tmp_path))
    (tmp_path / "storage").write_text(json.dumps({"rate": 1.0}))

    def fails() -> bool:
        try:
            FaultyFileSystem().info(f"faulty://{tmp_path}/storage")
        except OSError:
            return True
        return False

    failed = [fails() for _ in range(4 * RECENT)]
    assert {sum(failed[at : at + RECENT]) for at in range(3 * RECENT)} == {FAILURES}
