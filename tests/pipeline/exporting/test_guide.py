"""The commands and programs of docs/guides/export.md run as they are printed."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.pipeline.cli.main import app
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_commands_and_programs_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    fake_run.make(tmp_path / "runs" / "mine", shards=2, images=8)
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "docs/guides/export.md").read_text(encoding="utf-8"))
    commands = programs = 0
    for language, block in blocks:
        if language == "python":
            if "import lance" not in block or find_spec("lance"):  # it is in no extra
                exec(compile(block, "docs/guides/export.md", "exec"), {})
            programs += 1
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command == "lotlip-data":
                ended = CliRunner().invoke(app, arguments)
                assert ended.exit_code == 0, f"{line}: {ended.output}"
                commands += 1
    assert (commands, programs) == (7, 3)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("[!r]*/*")}
    for folder, ending, form in (
        ("captions", "parquet", "parquet"),
        ("captions", "jsonl", "jsonl"),
        ("tars", "tar", "webdataset"),
        ("dreamlip", "csv", "dreamlip"),
        ("short", "parquet", "parquet"),
    ):
        assert {f"{folder}/00000.{ending}", f"{folder}/00001.{ending}", f"{folder}/export-{form}.json"} <= names
