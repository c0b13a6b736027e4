"""The death of a Ray cluster is one sentence, soon; so is a cluster that cannot be reached."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import ray

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core import ray_cluster, ray_watch
from lotlip_data.pipeline.core.ray_watch import ClusterLost, ClusterProbe, ClusterWatch

COMMAND = """
import time
import typer
from lotlip_data.pipeline.cli.common import command
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks

def task(seconds):
    time.sleep(seconds)

try:
    with command("test", as_json=False) as console:
        for _ in run_ray_tasks(task, [0, *[600] * 100]):
            console.print("a task ended")
except typer.Exit as end:
    raise SystemExit(end.exit_code)
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture
def driver() -> Iterator["subprocess.Popen[str]"]:
    """A command in the midst of tasks that never end."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    children: list[psutil.Process] = []
    try:
        assert process.stdout and "a task ended\n" in iter(process.stdout.readline, "")
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_the_death_of_a_process_of_ray_is_an_error_of_one_line(driver: "subprocess.Popen[str]", name: str) -> None:
    children = psutil.Process(driver.pid).children(recursive=True)
    next(child for child in children if child.name() == name).kill()
    output, _ = driver.communicate(timeout=60)
    assert output == (
        f"error: Ray has died on this machine: its process {name} was killed or ran out of memory. Committed work is "
        "kept; run the same command again to resume.\n"
    )
    assert driver.returncode == 1
    assert not [child for child in children if child.is_running() and child.name() in ("raylet", "gcs_server")]


@pytest.mark.slow
def test_sigterm_stops_a_command_on_ray_without_a_native_stack(driver: "subprocess.Popen[str]") -> None:
    driver.terminate()
    output, _ = driver.communicate(timeout=120)
    assert output == "stopped. Committed work is kept; run the same command again to resume.\n"
    assert driver.returncode == 130


def test_a_loss_interrupts_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "POLL_SECONDS", 0.01)
    waiting = threading.Event()
    watch = ClusterWatch(lambda: "it has died" if waiting.is_set() else "")
    with pytest.raises(KeyboardInterrupt), watch, watch.in_use():
        waiting.set()
        threading.Event().wait(60)
    assert watch.loss == "it has died"


def test_a_head_node_is_lost_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        probe = ClusterProbe(port.getsockname())
        assert probe() == ""
        monkeypatch.setattr(ray_watch, "HEAD_SECONDS", -1.0)
        assert "has not answered for" in probe()
        port.listen()
        assert probe() == ""


def test_a_raylet_is_lost_at_once_and_an_error_meanwhile_is_not_blamed_on_a_task() -> None:
    with socket.socket() as head, socket.socket() as raylet:
        for port in (head, raylet):
            port.bind(("127.0.0.1", 0))
        head.listen()
        watch = ClusterWatch(ClusterProbe(head.getsockname(), raylet.getsockname()))
        with pytest.raises(ClusterLost, match="its process raylet was killed"):
            watch.check()
        raylet.listen()
        ClusterWatch(ClusterProbe(head.getsockname(), raylet.getsockname())).check()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{closed}", "ray://127.0.0.1:{closed}", "no-such-host.invalid:6379", "x"]
)
def test_an_address_without_a_cluster_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the cluster of other tests may be there
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address.format(closed=port.getsockname()[1]))
        with pytest.raises(UserError, match=r"^RAY_ADDRESS=.*: .*correct"), ray_cluster.cluster():
            pass


@pytest.mark.slow
def test_what_answers_at_the_address_must_be_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that accepts connections and is silent."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the cluster of other tests may be there
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()
        monkeypatch.setenv("RAY_ADDRESS", "{}:{}".format(*port.getsockname()))
        started = time.monotonic()
        with pytest.raises(UserError, match="is not Ray's control service"), ray_cluster.cluster():
            pass
    assert time.monotonic() - started < 60
