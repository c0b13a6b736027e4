"""Old scratch files of killed writers are removed, and nothing else."""

import os
import pathlib

from lotlip_data.manifests.storage import remove_stale_scratch


def test_old_scratch_files_are_removed_and_nothing_else(tmp_path: pathlib.Path) -> None:
    """A running writer's file, an object of the run, and a user's file with a similar name stay."""
    old, young = tmp_path / "a" / f".tmp-{'0' * 32}", tmp_path / f".tmp-{'1' * 32}"
    others = [tmp_path / "a" / "00000.parquet", tmp_path / ".tmp-mine"]
    old.parent.mkdir()
    for path in (old, young, *others):
        path.write_bytes(b"x")
    for path in (old, *others):
        os.utime(path, (0, 0))
    assert remove_stale_scratch(str(tmp_path)) == 1
    assert not old.exists()
    assert all(path.exists() for path in (young, *others))
    assert remove_stale_scratch(str(tmp_path / "nothing here")) == 0
    assert remove_stale_scratch("memory://somewhere") == 0
