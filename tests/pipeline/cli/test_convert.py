"""`lotlip-data convert`: output and exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.pipeline.cli.main import app
from tests.captioners.convert import tiny_sharegpt4v

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "convert", "sharegpt4v"]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_help_has_an_example() -> None:
    answer = call("--help")
    assert answer.returncode == 0
    assert "Example: lotlip-data convert sharegpt4v" in " ".join(answer.stdout.split())


@pytest.mark.slow
def test_it_converts_once_and_reports_an_error_in_one_line(tmp_path: Path) -> None:
    source = tiny_sharegpt4v.write(tmp_path / "x")
    shutil.move(source.parent / "tower", tmp_path / "tuned")
    out = tmp_path / "out"

    missing = call(source, out)
    assert (missing.returncode, missing.stderr) == (2, "")
    assert missing.stdout.startswith("error: ../tower: ") and missing.stdout.count("\n") == 1
    assert "--vision-tower" in missing.stdout

    done = call(source, out, "--vision-tower", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    assert f"{out}: done, 80 tensors" in done.stdout
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava"

    again = call(source, out, "--vision-tower", tmp_path / "tuned")
    assert (again.returncode, again.stdout) == (0, f"{out}: converted already, nothing to do\n")


def test_export_names_its_formats_and_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = CliRunner().invoke(app, ["convert", "export", str(tmp_path / "empty"), str(tmp_path / "out")])
    assert ended.exit_code == 2 and "--format" in ended.output
    for form, message in (("tensorflow", "is not one of open_clip, transformers, onnx"), ("onnx", "is not a model")):
        arguments = ["convert", "export", str(tmp_path / "empty"), str(tmp_path / "out"), "--format", form]
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 2 and message in ended.output and ended.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
