"""`lotlip-data run` on tars, a table and a folder beside a URL list: every stage works, and a kill costs nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lotlip_data import pipeline
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.reader import fetched_rows
from lotlip_data.pipeline.viewer.downloaded_images import DownloadedImages
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.http_server import SceneServer
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.synthetic.url_list import write_list
from tests.pipeline.existing_fixture import encoded, write_tar
from tests.support.processes import kill_driver

IMAGES = 8
"""Images of a shard."""
CAPTIONER = "tiny-instructblip"
TRAINING = {"method": "lotlip", "preset": "demo", "epochs": 1, "batch": 16, "warm_up": 1}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def image_of(seed: int, kind: str = "JPEG") -> bytes:
    """The picture of a scene."""
    return encoded(render(sample_scene(seed), 64), kind)


def text_of(seed: int) -> str:
    """The raw text of a scene."""
    return raw_text(sample_scene(seed))


def write_sources(folder: Path, server: str) -> list[dict[str, Any]]:
    """Four tars, one of PNGs with a damaged one, a table with two containers, a folder, and a list of URLs."""
    seeds = iter(SPLITS["images"])
    for tar in range(4):
        kind, ending = ("PNG", "png") if tar == 1 else ("JPEG", "jpg")
        members: dict[str, Any] = {}
        for _ in range(IMAGES):
            seed = next(seeds)
            members |= {f"{seed}.{ending}": image_of(seed, kind), f"{seed}.json": {"caption": text_of(seed)}}
        if tar == 1:
            members[f"bad.{ending}"] = b"no image"
        write_tar(folder / f"part-{tar:05d}.tar", members)
    own = [next(seeds) for _ in range(2 * IMAGES)]
    images = pa.array(
        [{"bytes": image_of(seed), "path": f"{seed}.jpg"} for seed in own],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "title": [text_of(seed) for seed in own]})
    pq.write_table(table, folder / "table.parquet", row_group_size=IMAGES)
    (folder / "photos").mkdir()
    for _ in range(IMAGES):
        seed = next(seeds)
        (folder / "photos" / f"{seed}.jpg").write_bytes(image_of(seed))
        (folder / "photos" / f"{seed}.txt").write_text(text_of(seed))
    write_list(str(folder / "list.csv"), server, [next(seeds) for _ in range(IMAGES)])
    return [
        {"name": "tars", "files": ["part-{00000..00003}.tar"], "text": "json.caption"},
        {"name": "table", "files": ["table.parquet"], "format": "image-table", "text": "title"},
        {"name": "folder", "files": ["photos"], "format": "image-folder", "images": "copy"},
        {"name": "web", "files": ["list.csv"]},
    ]


def start(folder: Path, run: Run) -> "subprocess.Popen[str]":
    """Start `lotlip-data run`."""
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "run", str(folder / "mine.yaml"), run.url, "--json"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def files_below(run: Run) -> dict[str, int]:
    """Every file of a run with the time when it was written; logs and metrics of invocations do not count."""
    paths = (path for path in Path(run.url).rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in paths if "logs" not in path.parts}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_tars_a_table_a_folder_and_urls_survives_a_kill_of_its_scan(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    with SceneServer() as server:
        sources = write_sources(tmp_path, server.url)
        manifest = {
            "name": "mine",
            "sources": sources,
            "samples_per_shard": IMAGES,
            "captioners": [CAPTIONER],
            "download": {"allow_hosts": ["127.0.0.1"]},
            "train": [TRAINING],
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(manifest))
        planned = pipeline.plan(str(tmp_path / "mine.yaml")).figures
        driver, deadline = start(tmp_path, run), time.monotonic() + 300
        while not any(shard > 0 for shard in ledger.fetched_shards(run)):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        kill_driver(driver)
        markers = {path: path.stat().st_mtime_ns for path in Path(run.images).glob("*_stats.json")}
        assert markers
        resumed = start(tmp_path, run)
        figures = json.loads(resumed.communicate()[0])
        assert resumed.returncode == 0, figures
    shards = ledger.fetched_shards(run)
    assert shards == list(range(8))
    assert {path: path.stat().st_mtime_ns for path in markers} == markers
    assert planned["images"] == 8 * IMAGES + 1  # the names alone do not show the damaged one
    check_images(run, shards)
    check_every_stage(run)
    before = files_below(run)
    again = start(tmp_path, run)
    again.communicate()
    assert again.returncode == 0 and files_below(run) == before
    check_changed_tar(tmp_path, run)


def check_images(run: Run, shards: list[int]) -> None:
    """Each image is in one shard, with its source, and is in the dataset."""
    images = [
        row
        for shard in shards
        for row in fetched_rows(run, shard, ledger.read_image_stats(run, shard), None).to_pylist()
        if row["status"] == SUCCESS
    ]
    by_source = {
        name: [row for row in images if row["sources"] == [name]] for name in ("tars", "table", "folder", "web")
    }
    counts = {name: len(rows) for name, rows in by_source.items()}
    assert counts == {"tars": 4 * IMAGES, "table": 2 * IMAGES, "folder": IMAGES, "web": IMAGES}
    assert len({row["uid"] for row in images}) == len(images)
    assert sum(row["converted"] or False for row in by_source["tars"]) == IMAGES
    samples = [row for path in Path(run.shards).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    texts = {row["uid"]: row["texts"][0] for row in images}
    assert {row["uid"]: row["raw"] for row in samples} == texts
    assert all(row[CAPTIONER] for row in samples)
    failed = [row for path in Path(run.quarantine("images")).glob("*") for row in pq.read_table(path).to_pylist()]
    assert [(row["member"], row["reason"]) for row in failed] == [("bad.png", "not an image")]


def check_every_stage(run: Run) -> None:
    """What reads a run works: status, verify, stats, report, and the pictures of the viewer."""
    status = pipeline.status(run).figures
    assert (status["fetched"], status["images"], status["download"]["left"]) == (8, 8 * IMAGES, 0)
    assert pipeline.verify(run).problems == []
    assert pipeline.report(run).problems == []
    viewer = DownloadedImages(run)
    for shard in ledger.fetched_shards(run):
        key = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["key"])["key"][0].as_py()
        assert viewer.image(shard, key).startswith(b"\xff\xd8\xff")


def check_changed_tar(folder: Path, run: Run) -> None:
    """A changed tar is one problem of `verify`, which names it and the remedy."""
    tar = folder / "part-00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"caption", b"Caption", 1))
    (problem,) = pipeline.verify(run).problems
    assert tar.name in problem and "lotlip-data download" in problem
