"""The report is one page that needs nothing else, says what is there, and lets nothing of the web run in it."""

import html.parser
import json
import re
import shutil
import unicodedata
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.reporting import charts, report
from lotlip_data.pipeline.reporting import html as report_page
from lotlip_data.pipeline.reporting.html import render
from lotlip_data.pipeline.reporting.status import format_text, status
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture as fake_run

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
    storage.create(made.run.plan, json.dumps(asdict(PLAN)).encode())
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
        self.words += " "
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset") or name[:2] == "on"
        ]

    def handle_data(self, data: str) -> None:
        self.words += data


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", Page(page).words)


def test_the_page_loads_and_runs_nothing_whatever_the_captions_hold(run: Run) -> None:
    page = Page(render(report.figures(run), dataset_stats(run)))
    assert not {"script", "iframe", "object", "img", "link", "form"} & set(page.tags)
    assert [one for one in page.loads if not one.startswith(("href=#", "xlink:href=#"))] == []
    assert page.words.count(HOSTILE) == 2  # as text: an example of its flag, and a reason


def test_nothing_invisible_is_on_the_page_and_no_text_turns_the_direction_of_another(run: Run) -> None:
    found = report.figures(run)
    hostile = "a\x00b\x07c\x1b[31md\u202ee\u2066f\U000e0041g\u00adh"
    shown = "a‹U+0000›b‹U+0007›c‹U+001B›[31md‹U+202E›e‹U+2066›f‹U+E0041›g‹U+00AD›h"
    found["captioners"]["sharegpt4v"]["examples"]["repetition"][0]["text"] = hostile
    found["captioners"]["sharegpt4v"]["rejected"] = {hostile: 1}
    found["failures"]["reasons"] = {hostile: 2}
    found["plan"]["sources"] = {hostile: 20}
    page = render(found, dataset_stats(run))
    assert not [one for one in page if unicodedata.category(one) in ("Cc", "Cf") and one not in "\n\t"]
    assert page.count(f"<bdi>{shown}</bdi>") == 3


def test_it_says_what_was_fetched_failed_captioned_and_flagged(run: Run) -> None:
    found = report.figures(run, price=3.0)
    assert found["failures"]["asked"] == 18 and found["failures"]["fetched"] == 16
    assert found["failures"]["reasons"] == {"other": 2}
    assert sum(count for counts in found["failures"]["hosts"].values() for count in counts.values()) == 2
    shown = found["captioners"]["sharegpt4v"]
    assert shown["texts"] == 15 and shown["flags"] == {"repetition": 1}
    assert shown["rejected"] == {f"no caption: {HOSTILE}": 1}
    assert sum(shown["lengths"].values()) == 15
    words = words_of(render(found, dataset_stats(run)))
    assert "Of 18 URLs, 16 gave an image (88.9%)" in words
    assert "all long texts" in words and "repetition" in words


def test_gpus_cost_and_other_actors_have_hours_only(run: Run, tmp_path: Path) -> None:
    """7.2 million milliseconds of an actor on two GPUs are 4 hours of a GPU."""
    made = Run.at(str(shutil.copytree(run.url, tmp_path / "run")))
    hours = {"llava": (7_200_000, 14_400_000), "sharegpt4v": (3_600_000, 0)}
    for name, spent in hours.items():
        storage.remove(made.caption_ledger(name))
        ledger.record(made.caption_ledger(name), 0, ledger.WorkRecord(8, 0, 9, 0, 1, *spent))
    found = report.figures(made, price=3.0)
    shown = {name: [found["captioners"][name][what] for what in ("hours", "gpu_hours", "cost")] for name in hours}
    assert shown == {"llava": [2, 4, 12], "sharegpt4v": [1, 0, None]}
    words = words_of(render(found))
    assert "4GPU-hours of captioning, 12.0 at 3.0 an hour" in words
    storage.remove(made.caption_ledger("llava"))
    words = words_of(render(report.figures(made, price=3.0)))
    assert "1actor-hours of captioning" in words and "GPU-hours" not in words and "at 3.0 an hour" not in words


def test_images_of_which_no_time_is_known_are_told_and_are_no_nought_hours(run: Run, tmp_path: Path) -> None:
    """As those that were imported, or committed right before a kill."""
    made = Run.at(str(shutil.copytree(run.url, tmp_path / "run")))
    name = "llava"
    storage.remove(made.caption_ledger(name))
    for shard, spent in enumerate(((3_600_000, 0), (0, 0))):
        ledger.record(made.caption_ledger(name), shard, ledger.WorkRecord(8, 0, 9, 0, 1, *spent))
    found = report.figures(made)
    assert [found["captioners"][name][what] for what in ("hours", "timed", "untimed")] == [1, 8, 8]
    words = words_of(render(found))
    of = {one: value for one, value in found["captioners"].items() if one != name}
    assert all(value["timed"] == 0 for value in of.values())
    assert "actor-hours – 1 –" in words and re.search(r"images without a known time \d+ 8 \d+", words)
    storage.remove(made.caption_ledger(name))
    assert "–actor-hours of captioning" in words_of(render(report.figures(made)))


def test_the_rows_of_the_lists_add_up_to_the_images_with_every_reason(run: Run) -> None:
    words = words_of(render(report.figures(run)))
    for line in (
        "rows of the lists 5,000",
        "not usable: no usable url −4,321",
        "filtered of web: width >= 256 −57",
        "of web, beyond its sample −599",
        "with the URL of an earlier row −2",
        "beyond the manifest's sample −3",
        "images to fetch 18",
    ):
        assert line in words
    assert 5_000 - 4_321 - 57 - 599 - 2 - 3 == 18


def test_texts_left_out_of_samples_that_stay_are_shown_by_captioner_and_reason(run: Run) -> None:
    found = report.figures(run)
    assert found["dataset"]["dropped_texts"] == {}
    found["dataset"]["dropped_texts"] = {"raw": {"too long": 31}, "llava": {"repetition": 777}}
    words = words_of(render(found))
    for name in ("llava: repetition", "777", "raw: too long", "31", "texts left out"):
        assert name in words


def test_table_6_has_a_chart_of_the_lengths_of_raw_texts_and_captions_and_one_of_sub_captions(run: Run) -> None:
    stats = dataset_stats(run)
    words, without = (words_of(render(report.figures(run), one)) for one in (stats, None))
    for name in ("raw", "llava"):
        row = stats["raw"] if name == "raw" else stats["captioners"]["llava"]
        assert f"({row['tokens_per_text']:,.0f} on average)" in words
    for chart in ("raw texts (", "BERT tokens of a text", "sub-captions a text"):
        assert chart in words and chart not in without


def test_the_longest_half_percent_of_the_texts_squeeze_no_chart() -> None:
    """999 texts of at most 15 tokens, and one of 16,000."""
    one = {"texts": 1000, "tokens_per_text": 25.0, "lengths": {"0-15": 999, "16000-16015": 1}}
    drawn = charts.lengths({"raw texts": one}, "tokens")
    assert "raw texts (25 on average)" in drawn and "16000" not in drawn


def test_duplicates_have_a_place_of_their_own_and_what_was_not_looked_for_is_not_nought(
    tmp_path: Path, run: Run
) -> None:
    """The second shard has the first one's pictures again, under other URLs."""
    made = fake_run.make(tmp_path / "run", shards=1, clean={"duplicates": True}, writers=["llava"])
    again = fake_run.fetched_rows(made.run, 0)
    seeds = [int(row["url"].rsplit("/", 1)[-1].removesuffix(".jpg")) for row in again[:3]]
    fake_run.write_images(made.run, 1, seeds)
    fake_run.write_captions(made.run, "llava", 1, fake_run.captions_of(made.run, "llava", 1))
    fake_run._shard(made.run.url)
    storage.create(made.run.plan, json.dumps(asdict(PLAN)).encode())
    found = report.figures(made.run)["duplicates"]
    assert found == {"url": 2, "duplicate": 3, "near_duplicate": None, "evaluation_image": None}
    words = words_of(render(report.figures(made.run)))
    assert "images with the bytes of an earlier one 3 images that look like an earlier one –" in words
    assert report.figures(run)["duplicates"] == {"url": 2} | dict.fromkeys(
        ("duplicate", "near_duplicate", "evaluation_image")
    )


def test_the_manifest_is_in_the_open_so_that_a_print_has_it(run: Run) -> None:
    page = Page(render(report.figures(run)))
    assert "details" not in page.tags and "min_long_texts: 1" in page.words


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


def damaged_copy(run: Run, folder: Path) -> Run:
    """A copy whose ledger counts its images, so that no marker is read for that."""
    copy = Run.at(str(shutil.copytree(run.url, folder / "run")))
    for shard in (0, 1):
        ledger.record(copy.image_ledger, shard, ledger.WorkRecord(9, 1, tokens=0, started=0, ended=1))
    return copy


@pytest.mark.parametrize("content", [b'{"images": 1', b"\xff\x00", b"[1]"])
@pytest.mark.parametrize("name", ["plan", "dataset", "image_stats", "evaluation", "captions", "parquet"])
def test_a_damaged_file_is_named_with_what_to_do_and_costs_its_own_part_of_the_page(
    run: Run, tmp_path: Path, name: str, content: bytes
) -> None:
    """But for the plan, without which nothing can be said."""
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
    ended = CliRunner().invoke(app, ["report", copy.url])
    assert ended.exit_code == (2 if name == "plan" else 1) and isinstance(ended.exception, SystemExit)
    assert f"{damaged}: " in ended.output and re.search("emove|verify|shard", ended.output)
    if name != "plan":
        words = words_of(Path(copy.url, "report.html").read_text())
        told = "Cannot be read What stands in these is missing from this page, and from what is counted on it."
        assert f"{told} {damaged}: " in words
        assert "16images fetched" in words and "Flags of sharegpt4v repetition 1" in words


@pytest.mark.parametrize(
    ("name", "field", "value", "says"),
    [
        ("dataset", "manifest", None, "'manifest' is missing or no object"),
        ("dataset", "samples", "8", "'samples' is missing or no whole number"),
        ("dataset", "shards", {}, "'shards' is missing or no list"),
        ("image_stats", "successes", None, "'successes' is missing or no whole number"),
    ],
)
def test_a_field_that_is_missing_or_of_another_kind_is_named_with_its_file(
    run: Run, tmp_path: Path, name: str, field: str, value: object, says: str
) -> None:
    copy = damaged_copy(run, tmp_path)
    damaged = {"dataset": copy.dataset, "image_stats": copy.image_stats(0)}[name]
    content = json.loads(storage.read_bytes(damaged))
    storage.replace(damaged, json.dumps(content | {field: value}).encode())
    ended = CliRunner().invoke(app, ["report", copy.url])
    assert ended.exit_code == 1
    assert f"{damaged}: its {says}" in ended.output and "emove" in ended.output


def test_a_manifest_that_is_not_utf_8_is_shown_as_far_as_it_can_be(run: Run, tmp_path: Path) -> None:
    copy = damaged_copy(run, tmp_path)
    storage.replace(copy.manifest, b"name: caf\xe9\n")
    ended = CliRunner().invoke(app, ["report", copy.url])
    assert ended.exit_code == 0 and "name: caf\ufffd" in Path(copy.url, "report.html").read_text()


def test_an_image_without_a_caption_is_not_captioned_and_its_reason_is_told(tmp_path: Path) -> None:
    """Even where none has one: that is when the reasons matter most."""
    made = fake_run.make(tmp_path / "run", shards=1, images=8, writers=[]).run
    for name, captioned in (("none", 0), ("half", 4)):
        fake_run.claim_captioner(made, name)
        images = fake_run.fetched_rows(made, 0)
        rows = [fake_run.caption(image, "A text." if index < captioned else None) for index, image in enumerate(images)]
        fake_run.write_captions(made, name, 0, rows)
        ledger.record(made.caption_ledger(name), 0, ledger.WorkRecord(8, 8 - captioned, tokens=9, started=0, ended=1))
    words = words_of(render(report.figures(made)))
    assert "0.0%captioned by none" in words and "50.0%captioned by half" in words
    assert "Images without a caption by none: poison 8" in words and "by half: poison 4" in words
    lines = format_text(status(made))
    assert "recaption    none: 1 of 1 shards, 0 images captioned, 8 failed, 0 left" in lines
    assert "recaption    half: 1 of 1 shards, 4 images captioned, 4 failed, 0 left" in lines


def test_captions_whose_tokens_nobody_counted_are_measured_in_words_and_say_so(run: Run, tmp_path: Path) -> None:
    made = fake_run.make(tmp_path / "run", shards=1, images=8, writers=["llava"]).run
    fake_run.claim_captioner(made, "mine")
    rows = [
        fake_run.caption(image, "Five words are in this.") | {"tokens": None}
        for image in fake_run.fetched_rows(made, 0)
    ]
    fake_run.write_captions(made, "mine", 0, rows)
    found = report.figures(made)
    assert [found["captioners"][name]["unit"] for name in ("llava", "mine")] == ["tokens", "words"]
    assert found["captioners"]["mine"]["tokens"] is None
    page = render(found)
    assert "tokens of a text" in page and "words of a text" in page and "mine (5 on average)" in page


def test_a_long_example_shows_that_it_is_cut(tmp_path: Path) -> None:
    made = fake_run.make(tmp_path / "run", shards=1, images=8, writers=[]).run
    fake_run.claim_captioner(made, "llava")
    long = "word " * 1000
    rows = [fake_run.caption(image, long, ["repetition"]) for image in fake_run.fetched_rows(made, 0)]
    fake_run.write_captions(made, "llava", 0, rows)
    text = report.figures(made)["captioners"]["llava"]["examples"]["repetition"][0]["text"]
    assert len(text) == report.LONGEST_EXAMPLE and text == long[: len(text) - 1] + "…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0833, "0.083"), (2.5, "2.5"), (9.96, "10"), (12.34, "12.3"), (1204.26, "1,204.3")],
)
def test_amounts_that_are_small_do_not_become_nought(value: float, shown: str) -> None:
    assert report_page._amount(value) == shown


def test_a_page_that_cannot_be_written_costs_no_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(app, ["report", run.url, "--out", str(tmp_path / "file" / "x.html")])
    assert ended.exit_code == 1 and isinstance(ended.exception, SystemExit) and "file" in ended.output


def test_a_folder_to_write_to_is_refused_before_anything_is_counted(run: Run, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["report", run.url, "--out", str(tmp_path)])
    assert ended.exit_code == 2 and f"{tmp_path}: is a folder" in ended.output


def test_tables_beside_an_evaluation_are_not_taken_for_one(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", shards=1, writers=[]).run
    storage.create(run.plan, json.dumps(asdict(PLAN)).encode())
    for ending in ("json", "md", "tex"):
        storage.create(storage.join(run.url, "eval", f"lotlip.{ending}"), b'{"retrieval": {"world": {"cut": 0.5}}}')
    assert report.figures(run)["trained"] == {"lotlip": {"retrieval": {"world": {"cut": 0.5}}}}


def test_results_beside_a_model_are_on_the_page_and_a_training_without_a_model_is_not_finished(tmp_path: Path) -> None:
    """What the run evaluated itself comes first; of a task that both have, it counts."""
    run = fake_run.make(tmp_path / "run", shards=1, writers=[]).run
    storage.create(storage.join(run.train("lotlip"), "done.json"), b"{}")
    storage.create(storage.join(run.train("lit"), "config.json"), b"{}")
    for url, tasks in (
        (run.evaluation("lotlip"), {"world": {"cut": 0.25}}),
        (storage.join(run.train("lotlip"), "eval-iiw.json"), {"world": {"cut": 1.0}, "iiw": {"cut": 0.5}}),
    ):
        storage.create(url, json.dumps({"retrieval": tasks, "classification": {}}).encode())
    trained = report.figures(run)["trained"]
    assert trained == {"lotlip": {"retrieval": {"world": {"cut": 0.25}, "iiw": {"cut": 0.5}}, "classification": {}}}
    lines = format_text(status(run))
    assert "train        lotlip, evaluated" in lines and "train        lit: not finished" in lines


def test_of_many_shards_some_are_looked_at_evenly() -> None:
    assert evenly(list(range(1000)), 4) == [0, 250, 500, 750]
    assert evenly([3, 5], 4) == [3, 5]


def test_models_stand_side_by_side() -> None:
    """Shares in percent, counts as they are, and a dash where a model was not evaluated on a set."""
    found = {"t2i": {"R@1": 0.5}, "images": 1200, "cut": 0.125, "damaged": ["a.jpg"]}
    both = {
        "lit": {"retrieval": {"long": found}, "classification": {}, "seconds": 3.0},
        "lotlip": {"retrieval": {}, "classification": {"colour": {"top1": 1.0}}},
    }
    assert list(report_page._model_rows(both)) == [
        ("long, text to image, R@1", ["50.0%", "–"]),
        ("long, images", ["1,200", "–"]),
        ("long, texts cut", ["12.5%", "–"]),
        ("colour, top-1", ["–", "100.0%"]),
    ]
