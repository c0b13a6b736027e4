"""The Python API: the code of docs/guides/notebook.md runs as it is printed, and arguments have several forms."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lotlip_data.manifests import Manifest, Run, UserError
from lotlip_data.pipeline import download, plan, recaption, status, train
from tests.support.paths import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/guides/notebook.md").read_text(), re.MULTILINE | re.DOTALL)
LIGHT = 4
"""Blocks before the first stage."""
STOP_SERVER = "server.__exit__(None, None, None)\n"


def run_blocks(folder: Path, blocks: list[str]) -> str:
    """What the blocks print when a program holds them."""
    program = folder / "notebook.py"
    program.write_text("\n".join(blocks))
    ended = subprocess.run([sys.executable, program.name], cwd=folder, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_blocks_before_the_first_stage_run(tmp_path: Path) -> None:
    assert "download(" in BLOCKS[LIGHT] and not any("download(" in block for block in BLOCKS[:LIGHT])
    assert "164" in run_blocks(tmp_path, [*BLOCKS[:LIGHT], STOP_SERVER])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_blocks_run_and_a_stage_prints_its_summary_and_nothing_else(tmp_path: Path) -> None:
    printed = run_blocks(tmp_path, BLOCKS)
    assert "download: 160 of 164 images" in printed and "http 410" in printed
    assert "reading the list" not in printed  # a log message, which the program did not ask for


@pytest.fixture
def manifest_file(tmp_path: Path) -> Path:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.example/1,x\nhttp://a.example/2,y\n")
    file = tmp_path / "m.yaml"
    file.write_text("name: m\nsources: [{name: a, files: list.csv}]\ncaptioners: [tiny-llava]\n")
    return file


def test_a_manifest_is_a_path_a_mapping_or_an_object(manifest_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lotlip_data.manifests.manifest import load

    monkeypatch.chdir(manifest_file.parent)
    mapping = {"name": "m", "sources": [{"name": "a", "files": ["list.csv"]}], "captioners": ["tiny-llava"]}
    manifest = load(str(manifest_file))
    assert isinstance(manifest, Manifest)
    expected = plan(manifest_file).to_dict()
    assert expected["images"] == 2
    assert plan(str(manifest_file)).to_dict() == plan(mapping).to_dict() == plan(manifest).to_dict() == expected


def test_a_result_prints_as_its_summary(manifest_file: Path) -> None:
    result = plan(manifest_file)
    assert repr(result).splitlines() == result.lines and result.problems == []


def test_errors_are_user_errors_that_say_what_to_do(manifest_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"run: no run here .*lotlip-data download"):
        status(run)
    with pytest.raises(UserError, match="no run here"):
        recaption(Run.at(str(run)))
    with pytest.raises(UserError, match="give the method too"):
        train(run, preset="demo")
    with pytest.raises(UserError, match=r"manifest: .*'lava' is unknown; did you mean 'llava'"):
        download({"name": "m", "sources": [{"name": "a", "files": ["a.csv"]}], "captioners": ["lava"]}, run)
    with pytest.raises(UserError, match=r"is a file; RUN is a run's folder"):
        download(manifest_file, manifest_file)


def test_a_call_leaves_logging_as_it_is(manifest_file: Path) -> None:
    package = logging.getLogger("lotlip_data")
    before = (package.level, package.propagate, list(package.handlers), list(logging.getLogger().handlers))
    plan(manifest_file)
    assert (package.level, package.propagate, list(package.handlers), list(logging.getLogger().handlers)) == before
