"""`ray job submit`: driver and actors import the code of the submitted wheel, and a job with wrong arguments fails.

The cluster has its own ports, folder and token, and does not affect another cluster on the machine.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.test_third_party_captioners import PACKAGE, make
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.wheels import build, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CHECKPOINTS = ROOT / "synthetic" / "checkpoints"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
CLI = ["python", "-m", "lotlip_data.pipeline.cli"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head node with a dashboard. Yields the environment in which `ray job` connects to it."""
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("jobs need Ray's dashboard: pip install 'ray[default]==2.60.*'")
    if " " in sys.executable:
        pytest.skip(f"`ray start --head` ends at once if the path of Ray has a space: {sys.executable}")
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: its sockets' paths have at most 107 characters
    gcs, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PIP_NO_DEPS"] = "1"  # docs/guides/clusters.md: without it Ray installs all requirements of a wheel
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    options = [
        *("--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *("--num-cpus=2", "--num-gpus=0", f"--object-store-memory={128 << 20}"),
    ]
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen([*RAY, "start", *options], env=environment, stdout=log, stderr=log)
    environment |= {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "no_proxy": "127.0.0.1"}
    try:
        deadline = time.monotonic() + 300
        while subprocess.run([*RAY, "job", "list"], env=environment, capture_output=True).returncode:
            assert head.poll() is None and time.monotonic() < deadline, Path(folder, "head.log").read_text()
            time.sleep(1)
        yield environment
    finally:
        stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def stop(head: "subprocess.Popen[bytes]") -> None:
    """Stop a head node and every process that it started, and no other."""
    children = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([psutil.Process(head.pid), *children], timeout=20)
    for process in alive:
        process.kill()
    head.wait(20)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The project's wheel, and the wheel of a package that adds a captioner."""
    project, plugin, out = (tmp_path_factory.mktemp(name) for name in ("project", "plugin", "wheels"))
    copy_project(project)
    for name, text in PACKAGE.items():
        (plugin / name).write_text(text)
    for folder in (project, plugin):
        build(folder, out)
    return sorted(map(str, out.glob("*.whl")))


@pytest.fixture(scope="module")
def unpacked(wheels: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The package of the project's wheel as a folder."""
    (wheel,) = [wheel for wheel in wheels if "lotlip_data" in wheel]
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return str(folder / "lotlip_data")


def submit(cluster: dict[str, str], wheels: list[str], *command: str) -> "subprocess.CompletedProcess[str]":
    modules = '{"py_modules": [' + ", ".join(f'"{wheel}"' for wheel in wheels) + "]}"
    submit_command = [*RAY, "job", "submit", "--runtime-env-json", modules, "--", *command]
    return subprocess.run(submit_command, env=cluster, cwd="/", capture_output=True, text=True, timeout=600)


def test_a_submitted_job_commits_captions_with_the_code_of_the_wheel(
    cluster: dict[str, str], wheels: list[str], unpacked: str, tmp_path: Path
) -> None:
    """One captioner is in a second wheel only, so the actors must import the submitted wheels too."""
    assert len(wheels) == 2
    for modules in (wheels, [unpacked]):
        location = submit(
            cluster, modules, "python", "-c", "import lotlip_data.pipeline.cli as cli; print(cli.__file__)"
        )
        assert location.returncode == 0, location.stdout + location.stderr
        assert "/runtime_resources/py_modules_files/" in location.stdout, location.stdout

    colour = {"name": "fourth", "kind": "colour", "model": "none", "prompt": "Mean colour:"}
    tiny = {"name": "tiny-instructblip", "preset": "tiny-instructblip", "model": str(CHECKPOINTS / "tiny-instructblip")}
    run = make(tmp_path / "run", colour, tiny)
    for options in ([], ["--captioner", "tiny-instructblip"]):
        done = submit(cluster, wheels, *CLI, "recaption", run.url, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("fourth", "tiny-instructblip"):
        rows = [row for shard in (0, 1) for row in pq.read_table(run.caption_shard(name, shard)).to_pylist()]
        assert len({row["uid"] for row in rows}) == len(rows) == 16
        assert all(row["text"] and row["error"] is None for row in rows)


def test_a_job_with_wrong_arguments_fails_with_the_reason(
    cluster: dict[str, str], wheels: list[str], tmp_path: Path
) -> None:
    """`ray job submit` exits with 1, reports the command's exit code 2, and shows its message."""
    missing = submit(cluster, wheels, *CLI, "recaption", str(tmp_path / "nothing"))
    assert missing.returncode == 1
    assert "failed with exit code 2" in missing.stdout + missing.stderr
    assert "no run here (no manifest.yaml). Start one with `lotlip-data download" in missing.stdout

    run = fake_run.make(tmp_path / "run", shards=1, images=2, writers=()).run
    unknown = submit(cluster, wheels, *CLI, "recaption", run.url, "--captioner", "blip")
    assert unknown.returncode == 1
    assert "'blip' is unknown" in unknown.stdout and "failed with exit code 2" in unknown.stdout
