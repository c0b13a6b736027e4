"""The command line: quick to answer, plain about errors, and honest in its exit code."""

import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lotlip_data.pipeline.cli import common as cli_command
from lotlip_data.pipeline.cli.common import load_validated_manifest
from lotlip_data.pipeline.cli.main import app
from tests.pipeline import run_fixture as fake_run

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
    "manifest-schema",
    "plan",
    "import",
    "view",
    "world",
)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_names_every_command_within_a_second_of_the_processor() -> None:
    times = []
    for _ in range(3):
        before = processor_seconds()
        answer = call("--help")
        times.append(processor_seconds() - before)
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


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("train: [{method: lotlp}]", "`train.0.method`: 'lotlp' is unknown; did you mean 'lotlip'? Known are lit, "),
        (
            "train: [{method: lit}, {method: lotlip, preset: 4m}]",
            "`train.1.preset`: '4m' is unknown; known are 3m, ",
        ),
        ("train: [{method: [lit]}]", "`train.0.method`: ['lit'] is unknown"),
        ("train: [{preset: [3m]}]", "`train.0.preset`: ['3m'] is unknown"),
        ("train: [{batchsize: 8}]", "`train.0.batchsize`: there is no such setting; did you mean `batch`?"),
        ("train: [{lr: fast}]", "`train.0.lr`: 'fast' should be a valid number"),
        ("train: [{lr: -1}]", "`train.0.lr`: -1 is too small; it must be above 0"),
        ("train: [{ray: {worker: 8}}]", "`train.0.ray.worker`: there is no such setting; did you mean `workers`?"),
        ("train: [{lr: 1e-3}, {lr: 2e-3}]", "`train`: lotlip is named twice; give one of them another `name`"),
        ("captioners: [lava]", "`captioners.0.preset`: 'lava' is unknown; did you mean 'llava'? Known are "),
        (
            "captioners: [{preset: llava, pool: {engine: vlm}}]",
            "`engine`: 'vlm' is unknown; did you mean 'vllm'? Known are auto, vllm, transformers",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(tmp_path: Path, section: str, said: str) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://127.0.0.1:9/1.jpg,x\n")
    asked, run = tmp_path / "m.yaml", tmp_path / "run"
    asked.write_text(f"name: m\nsources: [{{name: web, files: [a.csv]}}]\n{section}\n")
    for arguments in (["plan", str(asked)], ["download", str(asked), str(run)], ["run", str(asked), str(run)]):
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 2
        assert answer.output.startswith(f"error: {asked}: ") and said in answer.output
        assert answer.output.count("\n") == 1
    assert not run.exists()


def test_a_manifest_whose_captions_are_all_imported_is_downloaded(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: m\nsources: [{name: web, files: [a.csv]}]\ncaptioners: []\n")
    assert load_validated_manifest(str(tmp_path / "m.yaml")).captioners == ()


def test_a_training_of_a_run_that_cannot_be_keeps_those_before_it_from_starting(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("name: m\nsources: [{name: web, files: [a.csv]}]\ntrain: [{method: lit}, {method: lotlp}]\n")
    answer = CliRunner().invoke(app, ["train", str(tmp_path)])
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert answer.output.startswith(f"error: {manifest}: `train.1.method`: 'lotlp' is unknown")


FOLDER_TAKERS = (
    ["recaption", "RUN"],
    ["shard", "RUN"],
    ["train", "RUN"],
    ["features", "RUN"],
    ["stats", "RUN"],
    ["verify", "RUN"],
    ["status", "RUN"],
    ["report", "RUN"],
    ["view", "RUN"],
    ["import", "captions.csv", "RUN"],
)


@pytest.mark.parametrize(
    "command", [*FOLDER_TAKERS, ["download", "M", "RUN"], ["run", "M", "RUN"], ["plan", "M", "RUN"]]
)
@pytest.mark.parametrize("below", ["", "/train"])
def test_a_file_in_place_of_a_run_is_told_in_one_line(tmp_path: Path, command: list[str], below: str) -> None:
    asked = tmp_path / "m.yaml"
    asked.write_text("name: m\nsources: [{name: web, files: [a.csv]}]\n")
    answer = CliRunner().invoke(app, [{"RUN": f"{asked}{below}", "M": str(asked)}.get(one, one) for one in command])
    assert answer.exit_code == 2
    assert answer.output.startswith(f"error: {asked}: is a file; RUN is a run's folder")
    assert answer.output.count("\n") == 1


@pytest.mark.parametrize("command", FOLDER_TAKERS)
def test_a_run_that_is_not_there_is_not_sent_to_a_later_stage(tmp_path: Path, command: list[str]) -> None:
    answer = CliRunner().invoke(app, [str(tmp_path / "nope") if one == "RUN" else one for one in command])
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert "nope: no run here" in answer.output or "nope: there is no run" in answer.output
    assert not (tmp_path / "nope").exists()


def test_an_engine_that_a_captioner_lacks_is_told_before_anything_starts(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", shards=1, images=1, writers=()).run
    for command in (["recaption", run.url, "-c", "tiny-llava"], ["world", "accuracy", "tiny-llava"]):
        answer = CliRunner().invoke(app, [*command, "--engine", "vlm"])
        assert answer.exit_code == 2
        assert answer.output == (
            "error: captioner 'tiny-llava': `engine`: 'vlm' is unknown; did you mean 'vllm'? "
            "Known are auto, vllm, transformers\n"
        )


def told(error: OSError) -> str:
    """The line in which a command that ends in this error says so."""

    @contextlib.contextmanager
    def printed() -> Iterator[io.StringIO]:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(typer.Exit):
            yield out

    with printed() as out, cli_command.command("shard", False):
        raise error
    return out.getvalue()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("name", [".tmp-01ae", "new/captions"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    reason = os.strerror(code)
    expected = (
        f"error: {tmp_path}: nothing can be written there ({reason}). Make it writable, or name another folder.\n"
    )
    assert told(OSError(code, reason, str(tmp_path / name))) == expected


def test_a_file_that_cannot_be_read_is_not_taken_for_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    (tmp_path / "secret").touch()
    assert "Permission denied: '" in told(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret")))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of what is in a folder that one may not enter
    assert "Permission denied: '" in told(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hidden")))


def test_a_run_of_which_nothing_can_be_fetched_ends_in_1_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "dead.jsonl").write_text('{"url": "http://127.0.0.1:9/1.jpg", "caption": "x"}\n')
    (tmp_path / "dead.yaml").write_text(
        "name: dead\nsources: [{name: web, files: [dead.jsonl]}]\ncaptioners: [tiny-llava]\n"
        "download: {allow_hosts: [127.0.0.1], timeout: 2, retries: 0}\n"
    )
    answer = call("run", str(tmp_path / "dead.yaml"), str(tmp_path / "a run"))
    assert answer.returncode == 1
    assert "nothing could be fetched (1 × connection refused)" in answer.stdout
