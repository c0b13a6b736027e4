"""The command line: quick to answer, plain about errors, and honest in its exit code."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli"]
COMMANDS = (
    "download",
    "recaption",
    "shard",
    "train",
    "eval",
    "run",
    "demo",
    "status",
    "stats",
    "verify",
    "sources",
    "plan",
    "import",
    "view",
    "world",
)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)


def test_help_names_every_command_within_a_second() -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        answer = call("--help")
        times.append(time.monotonic() - began)
    assert answer.returncode == 0
    assert [name for name in COMMANDS if name not in answer.stdout] == []
    assert min(times) < 1.0


@pytest.mark.parametrize("module", ["torch", "ray", "vllm", "transformers", "pyarrow", "pandas", "img2dataset"])
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    code = f"import lotlip_data.pipeline.cli, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "world"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    answer = call(command, "--help")
    assert answer.returncode == 0
    assert f"Example: lotlip-data {command}" in " ".join(answer.stdout.split())


def test_what_is_asked_wrongly_ends_in_2_with_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.yaml")
    answer = call("download", missing, str(tmp_path / "run"))
    assert (answer.returncode, answer.stdout) == (2, f"error: {missing}: there is no such file\n")
    for command in ("recaption", "shard", "train", "status"):
        answer = call(command, str(tmp_path / "run"))
        assert answer.returncode == 2
        assert "no run here" in answer.stdout and "lotlip-data download" in answer.stdout
        assert "Traceback" not in answer.stdout + answer.stderr
    assert not (tmp_path / "run").exists()


def test_an_empty_list_is_an_error_that_names_the_list(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("url,caption\n")
    (tmp_path / "empty.yaml").write_text("name: empty\nsources: [{name: web, files: [empty.csv]}]\n")
    answer = call("run", str(tmp_path / "empty.yaml"), str(tmp_path / "a run"))
    assert answer.returncode == 2
    assert "no rows" in answer.stdout and "empty.csv" in answer.stdout


def test_a_wrong_manifest_names_file_field_and_fix(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: My Images\nsources: [{name: web, files: [a.csv]}]\nshards: 3\n")
    answer = call("run", str(tmp_path / "bad.yaml"), str(tmp_path / "run"))
    assert answer.returncode == 2
    assert (
        "bad.yaml" in answer.stdout
        and "`name`" in answer.stdout
        and "`shards`: there is no such setting" in answer.stdout
    )


def test_a_run_of_which_nothing_can_be_fetched_ends_in_1_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "dead.jsonl").write_text('{"url": "http://127.0.0.1:9/1.jpg", "caption": "x"}\n')
    (tmp_path / "dead.yaml").write_text(
        "name: dead\nsources: [{name: web, files: [dead.jsonl]}]\ncaptioners: [tiny-llava]\n"
        "download: {allow_hosts: [127.0.0.1], timeout: 2, retries: 0}\n"
    )
    answer = call("run", str(tmp_path / "dead.yaml"), str(tmp_path / "a run"))
    assert answer.returncode == 1
    assert "nothing could be fetched (1 × connection refused)" in answer.stdout
