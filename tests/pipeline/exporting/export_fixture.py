"""Exports runs of synthetic scenes without Ray. As a program, it exports a run, for tests that kill it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lotlip_data.manifests import manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.builds import plan_builds
from lotlip_data.pipeline.exporting.stage import Export, ExportTask, describe, export, export_shard
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun

TRICKY = (
    "plain",
    'a "quoted" word, and a comma',
    "two\nlines",
    "a carriage\rreturn and\r\nboth",
    "\ttabs\t",
    "\x01\x1b[31m\x7f\x85\u2028 control characters",
    "=1+1",
    '"',
    "NA",
    "-1.50",
    'é 中文 😀 \\n \\"',
    "",
)


def make(folder: Path, texts: Sequence[str | None] = TRICKY, captioners: Sequence[str] = ("llava", "other")) -> FakeRun:
    """A run of one shard whose images have these texts by the first captioner; None is a failure of it."""
    fake = fake_run.make(folder, shards=1, images=len(texts), writers=())
    images = fake_run.fetched_rows(fake.run, 0)
    for name in captioners:
        fake_run.claim_captioner(fake.run, name)
        of_name = texts if name == captioners[0] else [f"{name} on {image['url']}" for image in images]
        rows = [fake_run.caption(image, text) for image, text in zip(images, of_name, strict=True)]
        fake_run.write_captions(fake.run, name, 0, rows)
    return fake


def export_one(fake: FakeRun, out: Path, file_format: str, captioners: Sequence[str] = ()) -> tuple[Export, Path]:
    """Export shard 0. Returns what the export consists of, and the file."""
    content = describe(fake.manifest, fake.run, str(out), file_format, captioners)
    (build,) = plan_builds(fake.run, content, [0])
    record = export_shard(content, ExportTask(build, ()))
    assert record.file is not None
    return content, Path(content.folder.file(0))


def by_key(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


if __name__ == "__main__":
    opened = Run.at(sys.argv[1])
    export(manifest.frozen(opened), opened, *sys.argv[2:])
