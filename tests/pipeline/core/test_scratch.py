"""Scratch folders are removed, and a full temporary folder is named."""

import errno
import tempfile
from pathlib import Path

import pytest

from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_full_temporary_folder_is_named_with_the_variable_that_selects_it(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=rf"^{tmp_path} \(set TMPDIR .*: the disk is full"), scratch_folder("test"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_and_refused_writes_elsewhere_pass_unchanged(tmp_path: Path) -> None:
    for error in (DiskError(errno.ENOSPC, "/run/images: the disk is full"), OSError(errno.EIO, "broken")):
        with pytest.raises(OSError, match=str(error).rpartition("]")[2]) as raised, scratch_folder("test"):
            raise error
        assert raised.value is error
    assert list(tmp_path.iterdir()) == []
