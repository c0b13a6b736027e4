"""The report is one self-contained page: it shows what the run holds, and runs nothing that comes from the web."""

import json
import math
import re
import shutil
import unicodedata
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lotlip_data.manifests import digests, manifest, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.text_stats import BIN
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.reporting import charts, html, report
from lotlip_data.pipeline.reporting.html import render_html
from lotlip_data.pipeline.reporting.pictures import pick_pictures
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.reporting.status_table import format_table
from lotlip_data.pipeline.reporting.trainings import LossCurve
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'

PLAN = Partition(
    images=18,
    shards=2,
    samples_per_shard=9,
    rows=5_000,
    duplicates=2,
    invalid={"no usable url": 4_321},
    sources={"web": 620},
    filtered={"web": {"width >= 256": 57}},
    not_drawn={"web": 599},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two shards of 8 images; the first has a hostile caption with a flag, and an image without a caption."""
    fixture = run_fixture.make(tmp_path_factory.mktemp("report") / "a run", writers=["llava", "instructblip"])
    run_fixture.claim_captioner(fixture.run, "sharegpt4v")
    images = run_fixture.fetched_rows(fixture.run, 0)
    rows = [run_fixture.caption(image, f"A text of {index} dots.") for index, image in enumerate(images)]
    rows[0] = run_fixture.caption(images[0], HOSTILE, ["repetition"])
    rows[1] = {**run_fixture.caption(images[1], None), "error": f"no caption: {HOSTILE}"}
    run_fixture.write_captions(fixture.run, "sharegpt4v", 0, rows)
    run_fixture.write_captions(
        fixture.run,
        "sharegpt4v",
        1,
        [run_fixture.caption(image, "Short.") for image in run_fixture.fetched_rows(fixture.run, 1)],
    )
    run_fixture._shard(fixture.run.url)
    storage.create(fixture.run.plan, json.dumps(asdict(PLAN)).encode())
    return fixture.run


class Page(HTMLParser):
    """The tags of a page, their attributes that could load or run something, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset") or name[:2] == "on"
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def visible_text(page: str) -> str:
    return re.sub(r"\s+", " ", Page(page).text)


def test_the_page_loads_and_runs_nothing_whatever_captions_contain(run: Run) -> None:
    pictures, problems = pick_pictures(run)
    assert problems == [] and 12 <= len(pictures) <= 24
    pictures[0] = replace(pictures[0], uid=HOSTILE, raw=HOSTILE, captioner=HOSTILE, long=HOSTILE)
    page = Page(render_html(report.build_report(run), dataset_stats(run), pictures))
    assert not {"script", "iframe", "object", "link", "form"} & set(page.tags)
    inside = ("href=#", "xlink:href=#", "src=data:image/jpeg;base64,")
    assert [attribute for attribute in page.loads if not attribute.startswith(inside)] == []
    assert page.tags.count("img") == len(pictures)
    assert page.text.count(HOSTILE) == 5  # as text: in an example of a flag, in a reason, and below a picture


def test_every_section_is_in_the_contents_and_every_link_of_the_contents_has_a_section(run: Run) -> None:
    curve = LossCurve()
    curve.add(1, 2.0)
    page = render_html(report.build_report(run), dataset_stats(run), pick_pictures(run)[0], {"lotlip": curve})
    sections = re.findall(r'<h2 id="(\w+)">', page)
    assert re.findall(r'<a href="#(\w+)">', page) == sections and page.count("<h2") == len(sections)
    assert {"pictures", "captions", "models", "manifest"} <= set(sections)
    assert "<b><bdi>lotlip</bdi></b>: 2.000 after 1 step<" in page


def test_many_captioners_have_a_row_each_and_their_lengths_do_not_overlap(run: Run) -> None:
    content = report.build_report(run)
    one = content["captioners"]["llava"]
    content["captioners"] = {f"captioner-{number}": one for number in range(8)}
    page = render_html(content)
    words = visible_text(page)
    assert (
        f"captioner-0 {one['captioned']} {one['failed']} {one['left']} " in words
        and "captioned without a caption remaining" in words
    )
    assert (
        f"{8 * one['captioned']}long texts by 8 captioners on {one['captioned'] / 16:.1%} of the images each" in words
    )
    assert page.count('class="totals"') == 1 and words.split("URL lists")[0].count("captioner-") == 0
    chart = charts.length_chart(content["captioners"], "tokens per text")
    assert re.findall(r"captioner-(\d)", chart) == [str(number) for number in reversed(range(8))]


@given(st.dictionaries(st.integers(0, 40), st.integers(1, 1000), min_size=1))
def test_percentiles_are_within_the_bins_that_hold_them(counts: dict[int, int]) -> None:
    lengths = {f"{BIN * number}-{BIN * number + BIN - 1}": count for number, count in counts.items()}
    texts = np.repeat(sorted(counts), [counts[number] for number in sorted(counts)])
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        (value,) = charts._percentiles(lengths, (share,))
        expected = texts[max(0, math.ceil(round(share * len(texts), 9)) - 1)]
        assert BIN * expected <= value <= BIN * (expected + 1) + 1e-6


def test_invisible_characters_are_spelled_out_and_no_text_changes_the_direction_of_another(run: Run) -> None:
    content = report.build_report(run)
    hostile = "a\x00b\x07c\x1b[31md\u202ee\u2066f\U000e0041g\u00adh"
    shown = "a‹U+0000›b‹U+0007›c‹U+001B›[31md‹U+202E›e‹U+2066›f‹U+E0041›g‹U+00AD›h"
    content["captioners"]["sharegpt4v"]["examples"]["repetition"][0]["text"] = hostile
    content["captioners"]["sharegpt4v"]["rejected"] = {hostile: 1}
    content["failures"]["reasons"] = {hostile: 2}
    content["plan"]["sources"] = {hostile: 20}
    page = render_html(content, dataset_stats(run))
    assert not [char for char in page if unicodedata.category(char) in ("Cc", "Cf") and char not in "\n\t"]
    assert page.count(f"<bdi>{shown}</bdi>") == 3


def test_downloads_failures_captions_and_flags_are_reported(run: Run) -> None:
    content = report.build_report(run, price=3.0)
    assert content["failures"]["asked"] == 18 and content["failures"]["fetched"] == 16
    assert content["failures"]["reasons"] == {"other": 2}
    assert sum(count for counts in content["failures"]["hosts"].values() for count in counts.values()) == 2
    shown = content["captioners"]["sharegpt4v"]
    assert shown["texts"] == 15 and shown["flags"] == {"repetition": 1}
    assert shown["rejected"] == {f"no caption: {HOSTILE}": 1}
    assert sum(shown["lengths"].values()) == 15
    words = visible_text(render_html(content, dataset_stats(run)))
    assert "16 of 18 URLs returned an image (88.9%)" in words
    content["status"]["download"]["unit"] = "image"
    assert "16 of 18 images can be used (88.9%)" in visible_text(render_html(content, dataset_stats(run)))
    assert "all long texts" in words and "repetition" in words


def test_gpu_hours_have_a_cost_and_other_actors_have_hours_only(run: Run, tmp_path: Path) -> None:
    """7.2 million milliseconds of an actor with two GPUs are 4 GPU-hours."""
    copy = Run.at(str(shutil.copytree(run.url, tmp_path / "run")))
    hours = {"llava": (7_200_000, 14_400_000), "sharegpt4v": (3_600_000, 0)}
    for name, spent in hours.items():
        storage.remove(copy.caption_ledger(name))
        ledger.record(copy.caption_ledger(name), 0, ledger.WorkRecord(8, 0, 9, 0, 1, *spent))
    content = report.build_report(copy, price=3.0)
    shown = {name: [content["captioners"][name][what] for what in ("hours", "gpu_hours", "cost")] for name in hours}
    assert shown == {"llava": [2, 4, 12], "sharegpt4v": [1, 0, None]}
    words = visible_text(render_html(content))
    assert "4GPU-hours of captioning cost 12.0 at 3.0 per GPU-hour" in words
    storage.remove(copy.caption_ledger("llava"))
    words = visible_text(render_html(report.build_report(copy, price=3.0)))
    assert "1actor-hours of captioning" in words and "GPU-hours" not in words and "per GPU-hour" not in words


def test_images_without_a_recorded_time_are_reported_and_do_not_count_as_zero_hours(run: Run, tmp_path: Path) -> None:
    """Imported captions and captions committed right before a kill have no recorded time."""
    copy = Run.at(str(shutil.copytree(run.url, tmp_path / "run")))
    name = "llava"
    storage.remove(copy.caption_ledger(name))
    for shard, spent in enumerate(((3_600_000, 0), (0, 0))):
        ledger.record(copy.caption_ledger(name), shard, ledger.WorkRecord(8, 0, 9, 0, 1, *spent))
    content = report.build_report(copy)
    assert [content["captioners"][name][what] for what in ("hours", "timed", "untimed")] == [1, 8, 8]
    words = visible_text(render_html(content))
    others = [captioner for other, captioner in content["captioners"].items() if other != name]
    assert all(captioner["timed"] == 0 for captioner in others)
    assert "actor-hours – 1 –" in words and re.search(r"images without a recorded time \d+ 8 \d+", words)
    storage.remove(copy.caption_ledger(name))
    assert "–actor-hours of captioning" in visible_text(render_html(report.build_report(copy)))


def test_row_counts_with_every_reason_add_up_to_the_images(run: Run) -> None:
    words = visible_text(render_html(report.build_report(run)))
    for line in (
        "rows in the lists 5,000",
        "unusable: no usable url −4,321",
        "filtered out of web: width >= 256 −57",
        "not in the sample of web −599",
        "repeat an earlier URL −2",
        "not in the manifest's sample −3",
        "images to download 18",
    ):
        assert line in words
    assert 5_000 - 4_321 - 57 - 599 - 2 - 3 == 18


def test_texts_left_out_of_kept_samples_are_shown_by_captioner_and_reason(run: Run) -> None:
    content = report.build_report(run)
    assert content["dataset"]["dropped_texts"] == {}
    content["dataset"]["dropped_texts"] = {"raw": {"too long": 31}, "llava": {"repetition": 777}}
    words = visible_text(render_html(content))
    for name in ("llava: repetition", "777", "raw: too long", "31", "texts left out"):
        assert name in words


def test_table_6_has_charts_of_text_lengths_and_of_sub_captions(run: Run) -> None:
    stats = dataset_stats(run)
    with_stats, without = (visible_text(render_html(report.build_report(run), table)) for table in (stats, None))
    for name in ("raw", "llava"):
        row = stats["raw"] if name == "raw" else stats["captioners"]["llava"]
        assert f"({row['tokens_per_text']:,.0f} on average)" in with_stats
    for chart in ("raw texts (", "BERT tokens per text", "sub-captions per text"):
        assert chart in with_stats and chart not in without


def test_the_longest_half_percent_of_the_texts_do_not_compress_a_chart() -> None:
    """999 texts of at most 15 tokens, and one of 16,000."""
    texts = {"texts": 1000, "tokens_per_text": 25.0, "lengths": {"0-15": 999, "16000-16015": 1}}
    drawn = charts.length_chart({"raw texts": texts}, "tokens")
    assert "raw texts (25 on average)" in drawn and "16000" not in drawn


@pytest.mark.slow
def test_duplicates_are_counted_and_a_check_that_did_not_run_is_not_zero(tmp_path: Path, run: Run) -> None:
    """The second shard repeats images of the first under other URLs."""
    fixture = run_fixture.make(tmp_path / "run", shards=1, clean={"duplicates": True}, writers=["llava"])
    repeated = run_fixture.fetched_rows(fixture.run, 0)
    seeds = [int(row["url"].rsplit("/", 1)[-1].removesuffix(".jpg")) for row in repeated[:3]]
    run_fixture.write_images(fixture.run, 1, seeds)
    run_fixture.write_captions(fixture.run, "llava", 1, run_fixture.captions_of(fixture.run, "llava", 1))
    run_fixture._shard(fixture.run.url)
    storage.create(fixture.run.plan, json.dumps(asdict(PLAN)).encode())
    assert report.build_report(fixture.run)["duplicates"] == {
        "url": 2,
        "duplicate": 3,
        "near_duplicate": None,
        "evaluation_image": None,
    }
    words = visible_text(render_html(report.build_report(fixture.run)))
    assert "images identical to an earlier one 3 images that look like another one –" in words
    assert report.build_report(run)["duplicates"] == {"url": 2} | dict.fromkeys(
        ("duplicate", "near_duplicate", "evaluation_image")
    )


def test_the_manifest_is_not_collapsed_so_that_it_is_printed(run: Run) -> None:
    page = Page(render_html(report.build_report(run)))
    assert "details" not in page.tags and "min_long_texts: 1" in page.text


def test_a_run_that_has_just_started_has_a_page(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    with pytest.raises(UserError, match="there is no run"):
        report.build_report(run)
    run_fixture.manifest.freeze(run_fixture.make_manifest(), run)
    words = Page(render_html(report.build_report(run))).text
    assert "not partitioned into shards yet" in words and "dataset is not built yet" in words


def test_the_command_writes_the_page_and_prints_json(run: Run) -> None:
    result = CliRunner().invoke(app, ["report", run.url, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["status"]["images"] == 16
    assert Path(run.url, "report.html").read_text().startswith("<!doctype html>")


def damaged_copy(run: Run, folder: Path) -> Run:
    """A copy whose ledger has the image counts, so that counting reads no marker."""
    copy = Run.at(str(shutil.copytree(run.url, folder / "run")))
    for shard in (0, 1):
        ledger.record(copy.image_ledger, shard, ledger.WorkRecord(9, 1, tokens=0, started=0, ended=1))
    return copy


@pytest.mark.parametrize("content", [b'{"images": 1', b"\xff\x00", b"[1]"])
@pytest.mark.parametrize("name", ["plan", "dataset", "image_stats", "evaluation", "captions", "parquet"])
def test_a_damaged_file_is_named_with_a_remedy_and_costs_only_its_own_part_of_the_page(
    run: Run, tmp_path: Path, name: str, content: bytes
) -> None:
    """Except the partition (lists/plan.json), without which there is no report."""
    copy = damaged_copy(run, tmp_path)
    damaged = {
        "plan": copy.plan,
        "dataset": copy.dataset,
        "image_stats": copy.image_stats(0),
        "evaluation": copy.evaluation("lotlip"),
        "captions": copy.caption_shard("llava", 0),
        "parquet": storage.join(copy.shards, "train-00000.parquet"),
    }[name]
    storage.replace(damaged, content)
    result = CliRunner().invoke(app, ["report", copy.url])
    assert result.exit_code == (2 if name == "plan" else 1) and isinstance(result.exception, SystemExit)
    assert f"{damaged}: " in result.output and re.search("emove|verify|shard", result.output)
    if name != "plan":
        words = visible_text(Path(copy.url, "report.html").read_text())
        heading = "Files that cannot be read The content of these files is missing from this page and from its totals."
        assert f"{heading} {damaged}: " in words
        assert "16images downloaded" in words and "Flags texts checked repetition" in words


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("dataset", "manifest", None, "`manifest` is wrong: should be an object"),
        ("dataset", "samples", "8", "`samples` is wrong: should be a valid integer"),
        ("dataset", "shards", {}, "`shards` is wrong: should be a valid array"),
        ("image_stats", "successes", None, "`successes` is wrong: should be a valid integer"),
    ],
)
def test_a_missing_or_mistyped_field_is_named_with_its_file(
    run: Run, tmp_path: Path, name: str, field: str, value: object, message: str
) -> None:
    copy = damaged_copy(run, tmp_path)
    damaged = {"dataset": copy.dataset, "image_stats": copy.image_stats(0)}[name]
    content = json.loads(storage.read_bytes(damaged))
    content.pop(digests.JSON_KEY, None)
    storage.replace(damaged, json.dumps(content | {field: value}).encode())
    result = CliRunner().invoke(app, ["report", copy.url])
    assert result.exit_code == 1
    assert f"{damaged}: the field {message}" in result.output and "emove" in result.output


def test_a_manifest_that_is_not_utf_8_is_shown_with_replacement_characters(run: Run, tmp_path: Path) -> None:
    copy = damaged_copy(run, tmp_path)
    storage.replace(copy.manifest, b"name: caf\xe9\n")
    result = CliRunner().invoke(app, ["report", copy.url])
    assert result.exit_code == 0 and "name: caf\ufffd" in Path(copy.url, "report.html").read_text()


def test_images_without_a_caption_are_not_counted_as_captioned_and_have_a_reason(tmp_path: Path) -> None:
    """Also when no image has a caption, where the reasons matter most."""
    new_run = run_fixture.make(tmp_path / "run", shards=1, images=8, writers=[]).run
    for name, captioned in (("none", 0), ("half", 4)):
        run_fixture.claim_captioner(new_run, name)
        images = run_fixture.fetched_rows(new_run, 0)
        rows = [
            run_fixture.caption(image, "A text." if index < captioned else None) for index, image in enumerate(images)
        ]
        run_fixture.write_captions(new_run, name, 0, rows)
        ledger.record(
            new_run.caption_ledger(name), 0, ledger.WorkRecord(8, 8 - captioned, tokens=9, started=0, ended=1)
        )
    words = visible_text(render_html(report.build_report(new_run)))
    assert "4long texts by 2 captioners on at least 0.0% of the images (fewest: none)" in words
    assert "captioned 4 0 without a caption 4 8" in words
    assert "Images without a caption reason images captioner poison 4 half poison 8 none" in words
    rows = [line.split() for line in format_table(get_status(new_run))]
    assert ["recaption", "none", "8", "of", "8", "images", "8", "done"] in rows
    assert ["recaption", "half", "8", "of", "8", "images", "4", "done"] in rows


def test_lengths_of_captions_without_token_counts_are_in_words(run: Run, tmp_path: Path) -> None:
    new_run = run_fixture.make(tmp_path / "run", shards=1, images=8, writers=["llava"]).run
    run_fixture.claim_captioner(new_run, "mine")
    rows = [
        run_fixture.caption(image, "Five words are in this.") | {"tokens": None}
        for image in run_fixture.fetched_rows(new_run, 0)
    ]
    run_fixture.write_captions(new_run, "mine", 0, rows)
    content = report.build_report(new_run)
    assert [content["captioners"][name]["unit"] for name in ("llava", "mine")] == ["tokens", "words"]
    assert content["captioners"]["mine"]["tokens"] is None
    page = render_html(content)
    assert "tokens per text" in page and "words per text" in page and "mine (5 on average)" in page


def test_a_long_example_is_truncated_with_an_ellipsis(tmp_path: Path) -> None:
    new_run = run_fixture.make(tmp_path / "run", shards=1, images=8, writers=[]).run
    run_fixture.claim_captioner(new_run, "llava")
    caption = "word " * 1000
    rows = [run_fixture.caption(image, caption, ["repetition"]) for image in run_fixture.fetched_rows(new_run, 0)]
    run_fixture.write_captions(new_run, "llava", 0, rows)
    text = report.build_report(new_run)["captioners"]["llava"]["examples"]["repetition"][0]["text"]
    assert len(text) == report.EXAMPLE_CHARACTERS and text == caption[: len(text) - 1] + "…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0833, "0.083"), (2.5, "2.5"), (9.96, "10"), (12.34, "12.3"), (1204.26, "1,204.3")],
)
def test_small_amounts_are_not_rounded_to_zero(value: float, shown: str) -> None:
    assert html._format_amount(value) == shown


def test_a_page_that_cannot_be_written_is_an_error_without_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["report", run.url, "--out", str(tmp_path / "file" / "x.html")])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit) and "file" in result.output


def test_an_output_path_that_is_a_folder_is_rejected(run: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", run.url, "--out", str(tmp_path)])
    assert result.exit_code == 2 and f"{tmp_path}: is a folder" in result.output


def test_tables_beside_an_evaluation_are_not_read_as_results(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run", shards=1, writers=[]).run
    storage.create(run.plan, json.dumps(asdict(PLAN)).encode())
    for ending in ("json", "md", "tex"):
        storage.create(storage.join(run.url, "eval", f"lotlip.{ending}"), b'{"retrieval": {"world": {"cut": 0.5}}}')
    assert report.build_report(run)["trained"] == {"lotlip": {"retrieval": {"world": {"cut": 0.5}}}}


def test_results_beside_a_model_are_reported_and_a_training_run_without_done_json_is_unfinished(tmp_path: Path) -> None:
    """The run's own evaluation comes first, and counts for a task that both files have."""
    run = run_fixture.make(tmp_path / "run", shards=1, writers=[]).run
    storage.create(storage.join(run.train("lotlip"), "done.json"), b"{}")
    storage.create(storage.join(run.train("lit"), "config.json"), b"{}")
    for url, tasks in (
        (run.evaluation("lotlip"), {"world": {"cut": 0.25}}),
        (storage.join(run.train("lotlip"), "eval-iiw.json"), {"world": {"cut": 1.0}, "iiw": {"cut": 0.5}}),
    ):
        storage.create(url, json.dumps({"retrieval": tasks, "classification": {}}).encode())
    trained = report.build_report(run)["trained"]
    assert trained == {"lotlip": {"retrieval": {"world": {"cut": 0.25}, "iiw": {"cut": 0.5}}, "classification": {}}}
    rows = [line.split() for line in format_table(get_status(run))]
    assert ["train", "lotlip", "done"] in rows and ["train", "lit", "step", "0", "stopped"] in rows
    assert ["eval", "lotlip", "2", "result", "files", "done"] in rows


def test_shards_are_sampled_evenly() -> None:
    assert evenly(list(range(1000)), 4) == [0, 250, 500, 750]
    assert evenly([3, 5], 4) == [3, 5]


def test_each_model_has_a_column() -> None:
    """Fractions are in percent, counts are unchanged, and a dash marks a set that a model was not evaluated on."""
    metrics = {"t2i": {"R@1": 0.5}, "images": 1200, "cut": 0.125, "damaged": ["a.jpg"]}
    results = {
        "lit": {"retrieval": {"long": metrics}, "classification": {}, "seconds": 3.0},
        "lotlip": {"retrieval": {}, "classification": {"colour": {"top1": 1.0}}},
    }
    assert list(html._model_rows(results)) == [
        ("long, text to image, R@1", ["50.0%", "–"]),
        ("long, images", ["1,200", "–"]),
        ("long, texts truncated", ["12.5%", "–"]),
        ("colour, top-1", ["–", "100.0%"]),
    ]


def test_the_texts_of_one_captioner_have_one_heading_and_share_its_time(tmp_path: Path) -> None:
    fake = run_fixture.make(tmp_path / "a run", writers=["llava"])
    for name in ("qwen_long", "qwen_tags"):
        run_fixture.claim_captioner(fake.run, name)
        for shard in (0, 1):
            run_fixture.write_captions(fake.run, name, shard, run_fixture.captions_of(fake.run, "llava", shard))
            ledger.record(fake.run.caption_ledger(name), shard, WorkRecord(8, 0, 100, 0, 10, 4_000, 0))
    prompts = {"long": "Describe it.", "tags": "Tag it."}
    entry = {"name": "qwen", "kind": "llava", "model": "m", "prompts": prompts}
    manifest.freeze(fake.manifest.replace(captioners=("llava", entry)), fake.run, update=True)
    content = report.build_report(fake.run)
    assert content["texts"] == {"qwen": ["qwen_long", "qwen_tags"]}
    text = " ".join(Page(render_html(content, [])).text.split())
    assert "long texts by 2 captioners (3 per image)" in text
    assert "qwen llava qwen_long qwen_tags" in text
    # 16 images in 8 s of each text
    assert "The 2 texts of qwen are made together and share the time: 3,600 images per actor-hour with all" in text
