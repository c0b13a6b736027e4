"""The report is one page that needs nothing else, says what is there, and lets nothing of the web run in it."""

import html.parser
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import report
from lotlip_data.pipeline.cli import app
from lotlip_data.pipeline.partition import Plan
from lotlip_data.pipeline.plan_lists import evenly
from lotlip_data.pipeline.report_page import render
from lotlip_data.pipeline.stats import dataset_stats
from tests.pipeline import fake_run

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two shards of 8; a hostile caption with a flag, and an image without one, in the first."""
    made = fake_run.make(tmp_path_factory.mktemp("world") / "a run", writers=["llava", "instructblip"])
    fake_run.claim_captioner(made.run, "sharegpt4v")
    images = fake_run.fetched_rows(made.run, 0)
    rows = [fake_run.caption(image, f"A text of {index} dots.") for index, image in enumerate(images)]
    rows[0] = fake_run.caption(images[0], HOSTILE, ["repetition"])
    rows[1] = {**fake_run.caption(images[1], None), "error": f"no caption: {HOSTILE}"}
    fake_run.write_captions(made.run, "sharegpt4v", 0, rows)
    fake_run.write_captions(
        made.run, "sharegpt4v", 1, [fake_run.caption(image, "Short.") for image in fake_run.fetched_rows(made.run, 1)]
    )
    fake_run._shard(made.run.url)
    plan = Plan(images=18, shards=2, samples_per_shard=9, rows=20, duplicates=2, invalid={}, sources={"web": 20})
    storage.create(made.run.plan, json.dumps(asdict(plan)).encode())
    return made.run


class Page(html.parser.HTMLParser):
    """The tags of a page, their attributes that could load or run something, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset") or name[:2] == "on"
        ]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_loads_and_runs_nothing_whatever_the_captions_hold(run: Run) -> None:
    page = Page(render(report.figures(run), dataset_stats(run)))
    assert not {"script", "iframe", "object", "img", "link", "form"} & set(page.tags)
    assert [one for one in page.loads if not one.startswith(("href=#", "xlink:href=#"))] == []
    assert page.words.count(HOSTILE) == 2  # as text: an example of its flag, and a reason


def test_it_says_what_was_fetched_failed_captioned_and_flagged(run: Run) -> None:
    found = report.figures(run, price=3.0)
    assert found["failures"]["asked"] == 18 and found["failures"]["fetched"] == 16
    assert found["failures"]["reasons"] == {"other": 2}
    assert sum(count for counts in found["failures"]["hosts"].values() for count in counts.values()) == 2
    shown = found["captioners"]["sharegpt4v"]
    assert shown["texts"] == 15 and shown["flags"] == {"repetition": 1}
    assert shown["rejected"] == {f"no caption: {HOSTILE}": 1}
    assert len(shown["lengths"]) == 15 and shown["cost"] == pytest.approx(3 * shown["hours"])
    words = re.sub(r"\s+", " ", Page(render(found, dataset_stats(run))).words)
    assert "Of 18 URLs, 16 gave an image (88.9%)" in words
    assert "all long texts" in words and "repetition" in words


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    with pytest.raises(UserError, match="there is no run"):
        report.figures(run)
    fake_run.manifest.freeze(fake_run.asking(), run)
    words = Page(render(report.figures(run))).words
    assert "not cut into shards yet" in words and "Not written yet" in words


def test_the_command_writes_the_page_and_says_where(run: Run) -> None:
    ended = CliRunner().invoke(app, ["report", run.url, "--json"])
    assert ended.exit_code == 0
    assert json.loads(ended.stdout)["status"]["images"] == 16
    assert Path(run.url, "report.html").read_text().startswith("<!doctype html>")


def test_of_many_shards_some_are_looked_at_evenly() -> None:
    assert evenly(list(range(1000)), 4) == [0, 250, 500, 750]
    assert evenly([3, 5], 4) == [3, 5]
