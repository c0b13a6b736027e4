"""Scratch files of `storage` in a local run, left by writers that were killed."""

import contextlib
import os
import pathlib
import re
import time

from lotlip_data.manifests import storage

_SCRATCH = re.compile(r"\.tmp-[0-9a-f]{32}")


def sweep(folder: str, seconds: float = 86_400) -> int:
    """Remove scratch files in `folder` and its folders that nobody has written to for so many seconds; how many.

    Storage other than a local disk has none.
    """
    if not storage.is_local(folder):
        return 0
    removed = 0
    for path, _, names in os.walk(folder.removeprefix("file://")):
        for scratch in (pathlib.Path(path, name) for name in names if _SCRATCH.fullmatch(name)):
            with contextlib.suppress(OSError):  # its writer lives and is done, or another sweep was faster
                if time.time() - scratch.stat().st_mtime > seconds:
                    scratch.unlink()
                    removed += 1
    return removed
