"""`sources`, `plan` and `import`: their output and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

from tests.pipeline import run_fixture as fake_run

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli"]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)


def test_sources_lists_every_source_and_scale_and_how_to_obtain_the_lists() -> None:
    answer = call("sources")
    assert answer.returncode == 0
    for text in ("3,018,175", "102,571,723 images: cc3m, cc12m, yfcc15m, laion, coyo", "Train_GCC-training.tsv, from"):
        assert text in answer.stdout
    figures = json.loads(call("sources", "--json").stdout)
    assert figures["scales"]["3M"] == {"sources": ["cc3m"], "images": 3018175}
    assert figures["sources"]["laion"]["source"]["filter"].startswith("similarity >= 0.3")
    assert "is not published, but the images are: use `recap-long-laion`" in figures["sources"]["laion"]["ours"]
    assert "102,571,723 images: dreamlip-cc3m, dreamlip-cc12m" in answer.stdout


def test_plan_exits_with_0_or_with_1_if_the_manifest_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.example/1,x\n")
    (tmp_path / "m.yaml").write_text("name: m\nsources: [{name: a, files: list.csv}]\n")
    answer = call("plan", str(tmp_path / "m.yaml"), "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["images"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "m.yaml"]
    (tmp_path / "m.yaml").write_text("name: m\nsources: [{name: a, files: list.csv, text: alt}]\n")
    answer = call("plan", str(tmp_path / "m.yaml"))
    assert answer.returncode == 1
    assert "problem      " in answer.stdout and "has no column 'alt'; its columns are 'url', 'caption'" in answer.stdout


def test_plan_of_a_run_requires_an_existing_run_of_this_manifest(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.example/1,x\n")
    (tmp_path / "m.yaml").write_text("name: m\nsources: [{name: a, files: list.csv}]\ncaptioners: [tiny-llava]\n")
    other = fake_run.make(tmp_path / "other", shards=1, images=2, writers=[]).run
    for run, message in (
        (str(tmp_path / "nothing"), "no run here"),
        (other.url, "with another manifest: `"),
    ):
        answer = call("plan", str(tmp_path / "m.yaml"), run)
        assert answer.returncode == 2 and message in answer.stdout, answer.stdout


def test_import_shows_the_columns_of_several_tables_and_joins_them(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", shards=1, images=2, writers=()).run
    urls = [row["url"] for row in fake_run.fetched_rows(run, 0)]
    for name in ("IB", "SV"):
        (tmp_path / f"{name}.csv").write_text("".join([f"url,{name}\n", *(f"{url},A text.\n" for url in urls)]))
    tables = [str(tmp_path / f"{name}.csv") for name in ("IB", "SV")]
    answer = call("import", *tables, run.url, "--format", "recap-long", "--dry-run")
    assert answer.returncode == 0
    for line in ("  IB   captions by instructblip", "  SV   captions by sharegpt4v", "no column has captions by llava"):
        assert line in answer.stdout
    assert not Path(run.captions).exists()
    answer = call("import", *tables, run.url, "--format", "recap-long", "--json")
    assert json.loads(answer.stdout)["captions"] == {"instructblip": 2, "sharegpt4v": 2}
    answer = call("import", run.url)
    assert (answer.returncode, "no source carries captions" in answer.stdout) == (2, True)


def test_an_import_into_a_missing_run_exits_with_2(tmp_path: Path) -> None:
    answer = call("import", "table.csv", str(tmp_path / "run"), "--format", "dreamlip")
    assert (answer.returncode, "no run here" in answer.stdout) == (2, True)
