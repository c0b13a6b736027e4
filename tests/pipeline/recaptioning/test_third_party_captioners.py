"""Captioners of other packages and of endpoints, with the real command and Ray actors."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import manifest
from lotlip_data.manifests.run_layout import Run
from tests.captioners.models.fake_endpoint import Endpoint, completion, failure
from tests.pipeline import run_fixture as fake_run

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "recaption"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
PIPES: dict[str, Any] = {"capture_output": True, "text": True}
KEY = "sk-very-secret-0123456789"

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "fourth"
version = "1.0"

[project.entry-points."lotlip_data.captioners"]
colour = "fourth:Colour"

[tool.setuptools]
py-modules = ["fourth"]
""",
    "fourth.py": '''
"""A captioner whose caption is an image's mean colour."""

from lotlip_data.captioners.base import Caption
from lotlip_data.captioners.models.base import Captioner


class Colour(Captioner):
    def load(self, config, engine, resources):
        return ColourEngine(config.prompt)


class ColourEngine:
    window, burst = 4, 1

    def __init__(self, prompt):
        self.prompt = prompt

    def prepare(self, image):
        return image.resize((1, 1)).getpixel((0, 0))

    async def caption(self, colour):
        return Caption(f"{self.prompt} {colour}.", "stop", 4)

    def close(self):
        pass
''',
}


def make(folder: Path, *captioners: dict[str, Any]) -> Run:
    """A run with two shards of eight images, whose manifest names the captioners."""
    fake = fake_run.make(folder, shards=2, images=8, writers=())
    manifest.freeze(fake.manifest.replace(captioners=captioners), fake.run, update=True)
    return fake.run


def rows_of(run: Run, captioner: str) -> list[dict[str, Any]]:
    return [row for shard in (0, 1) for row in pq.read_table(run.caption_shard(captioner, shard)).to_pylist()]


@pytest.mark.slow
def test_a_captioner_of_another_installed_package_runs_in_the_actors(tmp_path: Path) -> None:
    """The package is built and installed by pip. No file of the project names it."""
    for name, text in PACKAGE.items():
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text(text)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    site = tmp_path / "site"
    subprocess.run([*install, "--target", str(site), str(tmp_path / "source")], check=True)
    run = make(tmp_path / "run", {"name": "fourth", "kind": "colour", "model": "none", "prompt": "Mean colour:"})
    subprocess.run([*COMMAND, run.url], check=True, env=ENVIRONMENT | {"PYTHONPATH": str(site)})
    rows = rows_of(run, "fourth")
    assert len({row["uid"] for row in rows}) == len(rows) == 16
    assert all(row["text"].startswith("Mean colour: (") and row["error"] is None for row in rows)
    assert len({row["text"] for row in rows}) > 1  # the texts depend on the images


@pytest.mark.slow
def test_an_endpoint_captions_a_run_and_its_key_stays_in_the_environment(tmp_path: Path) -> None:
    """One image is refused and quarantined with its reason. The key is in no file of the run and in no output."""
    endpoint = Endpoint()
    endpoint.answers[32] = [failure(400, f"cannot read the image, dear {KEY}"), completion()]
    settings = {"endpoint": endpoint.url, "api_key_env": "MY_KEY", "max_num_seqs": 4}
    pool = {"num_gpus": 0, "engine_options": settings}
    run = make(tmp_path, {"name": "newer", "kind": "openai", "model": "served", "pool": pool})
    environment = ENVIRONMENT | {"MY_KEY": KEY, "no_proxy": "127.0.0.1"}
    try:
        process = subprocess.run([*COMMAND, run.url], env=environment, capture_output=True, text=True)
    finally:
        endpoint.close()
    assert process.returncode == 0, process.stdout + process.stderr
    rows = rows_of(run, "newer")
    assert len({row["uid"] for row in rows}) == len(rows) == 16
    assert [row["text"] for row in rows].count("A scene.") == 15
    (refused,) = [row for row in rows if row["error"]]
    assert refused["error"] == "the endpoint: Error code: 400 - cannot read the image, dear [MY_KEY]"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in process.stdout + process.stderr
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, headers, *_ in endpoint.requests)


@pytest.mark.slow
def test_repeated_outages_of_an_endpoint_lose_no_image(tmp_path: Path) -> None:
    """Three runs end in an outage with images in flight. The fourth captions the rest."""
    endpoint = Endpoint()
    settings = {"endpoint": endpoint.url, "max_num_seqs": 4, "outage_seconds": 1.0}
    pool = {"num_gpus": 0, "engine_options": settings}
    run = make(tmp_path, {"name": "newer", "kind": "openai", "model": "served", "pool": pool})

    def start_outage() -> Any:
        endpoint.everything = failure(503, "out of order")
        return endpoint.everything

    try:
        for _ in range(3):
            endpoint.everything, endpoint.answers[32] = None, [completion(), start_outage]
            process = subprocess.run([*COMMAND, run.url], env=ENVIRONMENT | {"no_proxy": "127.0.0.1"}, **PIPES)
            assert process.returncode == 1 and "out of order" in process.stdout, process.stdout + process.stderr
        endpoint.everything, endpoint.answers[32] = None, completion()
        subprocess.run([*COMMAND, run.url], env=ENVIRONMENT | {"no_proxy": "127.0.0.1"}, check=True)
    finally:
        endpoint.close()
    rows = rows_of(run, "newer")
    assert len({row["uid"] for row in rows}) == len(rows) == 16
    assert [row["error"] for row in rows if row["error"]] == []
