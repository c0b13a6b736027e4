"""The command line: it answers quickly, and errors have a clear message and the right exit code."""

import contextlib
import errno
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lotlip_data.pipeline.cli.common import command, load_validated_manifest
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
    "publish",
    "captioners",
    "doctor",
    "fetch-models",
    "sources",
    "manifest-schema",
    "plan",
    "import",
    "export",
    "view",
    "synthetic",
    "convert",
    "embed",
    "search",
)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)


def processor_seconds() -> float:
    """Processor time of the finished child processes of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_names_every_command_within_a_second_of_processor_time() -> None:
    times = []
    for _ in range(3):
        before = processor_seconds()
        answer = call("--help")
        times.append(processor_seconds() - before)
    assert answer.returncode == 0
    assert [name for name in COMMANDS if name not in answer.stdout] == []
    assert min(times) < 1.0


def test_version_prints_the_version_of_the_package() -> None:
    ended = CliRunner().invoke(app, ["--version"])
    assert (ended.exit_code, ended.output) == (0, f"lotlip-data {version('lotlip-data')}\n")


def test_every_summary_is_whole_in_the_help_of_80_columns() -> None:
    ended = CliRunner().invoke(app, ["--help"], terminal_width=80)
    usage, _, rest = ended.output.partition("\n")
    assert "[ARGS]..." in usage and "..." not in rest


def test_the_group_world_is_a_hidden_name_of_synthetic() -> None:
    assert " world " not in CliRunner().invoke(app, ["--help"]).output
    help_texts = [CliRunner().invoke(app, [name, "accuracy", "--help"]).output for name in ("synthetic", "world")]
    assert help_texts[0] == help_texts[1].replace(" world ", " synthetic ")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["recation", "run"], "Did you mean 'recaption'"),
        (["recaption", "run", "--captoner", "llava"], "--captioner"),
        (["convert", "lotlipp"], "Did you mean 'lotlip'?"),
    ],
)
def test_a_mistyped_command_or_option_gets_the_nearest_name(arguments: list[str], suggestion: str) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2 and suggestion in ended.output


def test_every_option_of_every_command_has_help_that_is_a_sentence() -> None:
    for name, entry in typer.main.get_command(app).commands.items():
        for leaf in getattr(entry, "commands", {name: entry}).values():
            for parameter in leaf.params:
                assert str(parameter.help).endswith((".", ")")) and str(parameter.help)[0].isupper(), (name, parameter)


@pytest.mark.parametrize("module", ["torch", "ray", "vllm", "transformers", "pyarrow", "pandas", "img2dataset"])
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    code = f"import lotlip_data.pipeline.cli, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("synthetic", "convert", "captioners")])
def test_every_command_has_help_with_an_example(name: str) -> None:
    answer = call(name, "--help")
    assert answer.returncode == 0
    assert f"Example: lotlip-data {name}" in " ".join(answer.stdout.split())


def test_a_wrong_argument_exits_with_2_and_one_line_with_the_remedy(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.yaml")
    answer = call("download", missing, str(tmp_path / "run"))
    assert (answer.returncode, answer.stdout) == (2, f"error: {missing}: there is no such file\n")
    for name in ("recaption", "shard", "train", "status"):
        answer = call(name, str(tmp_path / "run"))
        assert answer.returncode == 2
        assert "no run here" in answer.stdout and "lotlip-data download" in answer.stdout
        assert "Traceback" not in answer.stdout + answer.stderr
    assert not (tmp_path / "run").exists()


def test_an_empty_list_is_an_error_that_names_the_list(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("url,caption\n")
    (tmp_path / "empty.yaml").write_text(
        "name: empty\nsources: [{name: web, files: [empty.csv]}]\ncaptioners: [tiny-llava]\ntrain: []\n"
    )
    answer = call("run", str(tmp_path / "empty.yaml"), str(tmp_path / "a run"))
    assert answer.returncode == 2
    assert "no rows" in answer.stdout and "empty.csv" in answer.stdout


def test_the_error_for_a_wrong_manifest_names_file_field_and_fix(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: My Images\nsources: [{name: web, files: [a.csv]}]\nshards: 3\n")
    answer = call("run", str(tmp_path / "bad.yaml"), str(tmp_path / "run"))
    assert answer.returncode == 2
    assert (
        "bad.yaml" in answer.stdout
        and "`name`" in answer.stdout
        and "`shards`: there is no such setting" in answer.stdout
    )


@pytest.mark.parametrize(
    ("section", "message"),
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
def test_a_setting_of_a_later_stage_is_checked_before_the_first_stage(
    tmp_path: Path, section: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://127.0.0.1:9/1.jpg,x\n")
    manifest, run = tmp_path / "m.yaml", tmp_path / "run"
    manifest.write_text(f"name: m\nsources: [{{name: web, files: [a.csv]}}]\n{section}\n")
    for arguments in (
        ["plan", str(manifest)],
        ["download", str(manifest), str(run)],
        ["run", str(manifest), str(run)],
    ):
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 2
        assert answer.output.startswith(f"error: {manifest}: ") and message in answer.output
        assert answer.output.count("\n") == 1
    assert not run.exists()


def test_a_manifest_without_captioners_is_valid(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: m\nsources: [{name: web, files: [a.csv]}]\ncaptioners: []\n")
    assert load_validated_manifest(str(tmp_path / "m.yaml")).captioners == ()


def test_a_wrong_training_of_a_run_stops_the_trainings_before_it_from_starting(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("name: m\nsources: [{name: web, files: [a.csv]}]\ntrain: [{method: lit}, {method: lotlp}]\n")
    answer = CliRunner().invoke(app, ["train", str(tmp_path)])
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert answer.output.startswith(f"error: {manifest}: `train.1.method`: 'lotlp' is unknown")


RUN_COMMANDS = (
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
    ["export", "RUN", "--out", "captions"],
)


@pytest.mark.parametrize(
    "arguments", [*RUN_COMMANDS, ["download", "M", "RUN"], ["run", "M", "RUN"], ["plan", "M", "RUN"]]
)
@pytest.mark.parametrize("below", ["", "/train"])
def test_a_file_in_place_of_a_run_is_an_error_of_one_line(tmp_path: Path, arguments: list[str], below: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("name: m\nsources: [{name: web, files: [a.csv]}]\n")
    answer = CliRunner().invoke(app, [{"RUN": f"{file}{below}", "M": str(file)}.get(part, part) for part in arguments])
    assert answer.exit_code == 2
    assert answer.output.startswith(f"error: {file}: is a file; RUN is a run's folder")
    assert answer.output.count("\n") == 1


@pytest.mark.parametrize("arguments", RUN_COMMANDS)
def test_the_error_for_a_missing_run_names_the_first_stage(tmp_path: Path, arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, [str(tmp_path / "nope") if part == "RUN" else part for part in arguments])
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert "nope: no run here" in answer.output or "nope: there is no run" in answer.output
    assert not (tmp_path / "nope").exists()


def test_an_unknown_engine_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", shards=1, images=1, writers=()).run
    for arguments in (["recaption", run.url, "-c", "tiny-llava"], ["synthetic", "accuracy", "tiny-llava"]):
        answer = CliRunner().invoke(app, [*arguments, "--engine", "vlm"])
        assert answer.exit_code == 2
        assert answer.output == (
            "error: captioner 'tiny-llava': `engine`: 'vlm' is unknown; did you mean 'vllm'? "
            "Known are auto, vllm, transformers\n"
        )


def printed_for(error: OSError) -> str:
    """What a command prints that ends with this error."""

    @contextlib.contextmanager
    def printed() -> Iterator[io.StringIO]:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(typer.Exit):
            yield out

    with printed() as out, command("shard", False):
        raise error
    return out.getvalue()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("name", [".tmp-01ae", "new/captions"])
def test_the_error_for_a_folder_without_write_access_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root has write access everywhere
    line = printed_for(OSError(code, os.strerror(code), str(tmp_path / name)))
    assert (
        line.startswith(f"error: {tmp_path}: ")
        and "Make it writable or use another folder, then run the same command again" in line
    )


def test_an_unreadable_file_is_not_reported_as_a_folder_without_write_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    (tmp_path / "secret").touch()
    assert f"{tmp_path}/secret: Permission denied. Check the path" in printed_for(
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret"))
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a file in a folder without access
    assert f"{tmp_path}/hidden: Permission denied. Check the path" in printed_for(
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hidden"))
    )


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/run"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/run"),
        OSError(errno.ENAMETOOLONG, "File name too long", "/tmp/xxx"),
    ],
)
def test_the_same_command_is_proposed_again_only_where_it_may_succeed(error: OSError) -> None:
    line = printed_for(error)
    assert line.startswith(f"error: {error.filename}: {error.strerror}. ") and "resume" not in line
    assert "run the same command again to resume" in printed_for(TimeoutError(errno.ETIMEDOUT, "timed out"))
    assert "run the same command again to resume" in printed_for(OSError("the endpoint is busy"))


def test_a_run_without_any_downloaded_image_exits_with_1_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "dead.jsonl").write_text('{"url": "http://127.0.0.1:9/1.jpg", "caption": "x"}\n')
    (tmp_path / "dead.yaml").write_text(
        "name: dead\nsources: [{name: web, files: [dead.jsonl]}]\ncaptioners: [tiny-llava]\ntrain: []\n"
        "download: {allow_hosts: [127.0.0.1], timeout: 2, retries: 0}\n"
    )
    answer = call("run", str(tmp_path / "dead.yaml"), str(tmp_path / "a run"))
    assert answer.returncode == 1
    assert "no image downloaded (1 × connection refused)" in answer.stdout


def test_verify_and_eval_tables_print_json(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", shards=1, images=2, writers=()).run
    Path(run.dataset).parent.mkdir(parents=True, exist_ok=True)
    Path(run.dataset).write_text("{")
    broken = CliRunner().invoke(app, ["verify", run.url, "--json"])
    assert broken.exit_code in (1, 2) and run.dataset in broken.stderr
    figures = {"t2i": {"R@1": 0.5, "R@5": 0.6, "R@10": 0.7}, "cut": 0.0, "cut_tokens": 0.0, "damaged": []}
    content = {"retrieval": {"x": figures | {"i2t": figures["t2i"]}}, "classification": {}}
    settings = {"model": "0123", "name": "mine", "tasks": {"x": {"partial": True}}}
    (tmp_path / "eval.json").write_text(json.dumps(content | {"settings": settings}))
    ended = CliRunner().invoke(app, ["eval-tables", str(tmp_path / "eval.json"), "--json"])
    assert ended.exit_code == 0
    (of_task,) = json.loads(ended.stdout)["mine"].values()
    assert of_task["partial"] is True and of_task["t2i"]["R@1"] == 0.5
    assert "| mine |" in ended.stderr and "50.00\\*" in ended.stderr
