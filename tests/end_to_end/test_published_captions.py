"""The guide's commands make a dataset from lists that carry captions, also if the import is killed in between."""

import csv
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.catalog import scales
from lotlip_data.synthetic.http_server import SceneServer
from lotlip_data.synthetic.scenes import SPLITS
from tests.end_to_end.test_kill import ENVIRONMENT
from tests.support.paths import ROOT
from tests.support.processes import kill_driver

GUIDE = (ROOT / "docs" / "guides" / "published-captions.md").read_text()
CAPTIONERS = {"instructblip": "IB", "llava": "LLA", "sharegpt4v": "SV"}
DREAMLIP = ("Image Path", "raw_caption", "shortIB_captions", "longIB_captions", "longSV_captions", "longLLA_captions")
IMAGES = 8
"""Images of each source."""


def text_of(short_name: str, url: str) -> str:
    return f'The {short_name} text, of "{url}".\nIt has two sentences.'


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_lists(folder: Path, urls: Sequence[str]) -> None:
    """Write the lists of the guide's manifest: three CSVs of DreamLIP, parts of one list, and a file per captioner."""
    by_source = [urls[start : start + IMAGES] for start in range(0, len(urls), IMAGES)]
    for name, part in zip(("cc3m", "cc12m", "yfcc15m"), by_source, strict=False):
        rows = [(url, "raw", "short", *(text_of(short, url) for short in ("IB", "SV", "LLA"))) for url in part]
        write_csv(folder / f"{name}.csv", DREAMLIP, rows)
    for number in range(4):
        rows = [
            (text_of("LLA", url), text_of("IB", url), url, text_of("SV", url), "raw") for url in by_source[3][number::4]
        ]
        write_csv(folder / "laion" / f"{number}.csv", ("llava", "InstructBLIP", "url", "sharegpt4v", "TEXT"), rows)
    for number, short in enumerate(CAPTIONERS.values()):
        rows = [(text_of(short, url), "raw", url) for url in by_source[4][:-1]]
        random.Random(number).shuffle(rows)
        write_csv(
            folder / "coyo" / f"{number}.csv", (f"long{short}_captions", "id" if number else "raw", "image_url"), rows
        )


def guide_commands() -> list[list[str]]:
    """The commands of the guide, in its order."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("lotlip-data ")]


def run_command(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the guide as a shell does in `folder`."""
    expanded = [
        name
        for argument in arguments
        for name in (sorted(map(str, folder.glob(argument))) if "*" in argument else [argument])
    ]
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", *expanded]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def texts(run: Run, name: str) -> dict[str, Any]:
    """By URL, the text of a captioner in the dataset."""
    files = sorted(Path(run.shards).glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=["url", name]).to_pylist()]
    assert len({row["url"] for row in rows}) == len(rows)
    return {row["url"]: row[name] for row in rows}


def kill_in_import(folder: Path, arguments: Sequence[str], run: Run) -> int:
    """Start the command, and kill it once the import has committed captions. Returns how many files it committed."""
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", *arguments]
    driver = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list(Path(run.captions).glob("*/*.parquet")):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kill_driver(driver)
    return len(list(Path(run.captions).glob("*/*.parquet")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_guides_commands_make_the_dataset_also_after_a_kill_in_the_import(tmp_path: Path) -> None:
    run, mine = Run.at(str(tmp_path / "runs" / "recaptioned")), Run.at(str(tmp_path / "runs" / "mine"))
    plan, whole, *others = guide_commands()
    assert (plan[1], whole[1]) == ("plan", "run")
    (manifest,) = re.findall(r'```yaml title="recaptioned.yaml"\n(.*?)```', GUIDE, re.S)
    small = {"samples_per_shard": 2, "download": {"allow_hosts": ["127.0.0.1"]}, "train": []}
    (tmp_path / "recaptioned.yaml").write_text(yaml.safe_dump(yaml.safe_load(manifest) | small))
    with SceneServer() as server:
        count = IMAGES * len(scales()["100M-recaptioned"])
        urls = [f"{server.url}/scene/{seed}.jpg" for seed in SPLITS["images"][:count]]
        write_lists(tmp_path / "lists", urls)
        planned = run_command(tmp_path, plan[1:])
        assert planned.returncode == 0, planned.stdout
        assert f"images       {count - 1} without duplicates" in planned.stdout
        assert "the lists carry them, nothing to caption" in planned.stdout
        total = len(CAPTIONERS) * -(-(count - 1) // 2)
        assert 0 < kill_in_import(tmp_path, whole[1:], run) < total
        finished = run_command(tmp_path, whole[1:])
        assert finished.returncode == 0, finished.stdout
    for name, short in CAPTIONERS.items():
        assert texts(run, name) == {url: text_of(short, url) for url in urls[:-1]}
    shutil.copytree(run.url, mine.url)
    shutil.rmtree(mine.captions)
    for command in others:
        answer = run_command(tmp_path, command[1:])
        assert answer.returncode == 0, answer.stdout
        if command[1] in ("download", "shard") or command[1:] == ["import", "runs/recaptioned"]:
            assert "nothing to do" in answer.stdout
        if command[1] == "status":
            assert "next: lotlip-data view" in answer.stdout
        if "--dry-run" in command:
            assert "longLLA_captions  captions by llava" in answer.stdout and not Path(mine.captions).exists()
    imported = sorted(Path(mine.captions).glob("*/00000.parquet"))
    assert [file.parent.name for file in imported] == list(CAPTIONERS)
