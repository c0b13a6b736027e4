"""The report in a real browser: it is legible on a phone, on a desktop, in dark mode and in print.

It needs the same browser as `tests/pipeline/viewer/test_browser.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.calibration import calibrate
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.reporting import report
from lotlip_data.pipeline.reporting.html import render_html
from lotlip_data.pipeline.reporting.pictures import pick_pictures
from lotlip_data.pipeline.reporting.score_examples import find_examples
from lotlip_data.pipeline.reporting.trainings import LossCurve
from tests.pipeline.reporting.test_report import HOSTILE, run  # noqa: F401
from tests.pipeline.viewer import dataset_fixture
from tests.pipeline.viewer.test_browser import CONTRAST, DESKTOP, PHONE, browser, save_screenshot, set_display  # noqa: F401

pytestmark = pytest.mark.slow

# Font size of the smallest text in a chart, in CSS pixels.
SMALLEST = """
const drawn = text => { const {a, b} = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b) };
return Math.min(...[...document.querySelectorAll("svg text")].map(drawn));
"""
# Tables wider than their box, by their first words.
TOO_WIDE = """
const boxes = [...document.querySelectorAll(".wide")].filter(box => box.scrollWidth > box.clientWidth);
return boxes.map(box => box.innerText.slice(0, 40));
"""


@pytest.fixture(scope="module")
def address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    page = tmp_path_factory.mktemp("report") / "report.html"
    content = report.build_report(run, price=2.0)
    content["captioners"]["sharegpt4v"]["rejected"] = {"https://a.example/" + "a" * 300: 1}
    content["failures"]["hosts"] = {"a-very-long-name-of-a-host." * 4 + "example": {"http 404": 3, "truncated": 2}}
    curves = {name: LossCurve([1.0, 2.0], [3.0, 2.5], 2, 2.5) for name in ("lit", "lotlip", "a-long-name" * 4)}
    page.write_text(render_html(content, dataset_stats(run), pick_pictures(run)[0], curves))
    return page.as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_every_text_is_legible(browser: Any, address: str, size: tuple[int, int], dark: bool) -> None:  # noqa: F811
    set_display(browser, size, dark)
    browser.get(address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script(SMALLEST) >= 11
    assert browser.execute_script(CONTRAST) == []
    assert browser.execute_script(TOO_WIDE) == []
    broken = "return [...document.images].filter(image => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0 and browser.execute_script("return document.images.length") >= 12


@pytest.fixture(scope="module")
def scored_address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    """A page with the section on scores, with hostile texts and labels."""
    folder = tmp_path_factory.mktemp("scored")

    def change(number: int, row: dataset_fixture.Row) -> None:
        row["llava_sub"] = [HOSTILE * 4 + str(number), *row["llava_sub"][1:]]

    scored = dataset_fixture.make(folder / "run", change=change, scorers=dataset_fixture.SCORERS)
    content = json.loads(Path(scored.dataset).read_text())
    content["scorers"]["agreement"]["kind"] = "repetition"
    Path(scored.dataset).write_text(json.dumps(content))
    labels = folder / "labels.csv"
    rows = "".join(f"{number:032x},llava,0,{number % 2}\n" for number in range(30))
    labels.write_text("uid,captioner,sub_caption,correct\n" + rows)
    figures, stats = report.build_report(run), dataset_stats(scored)
    page = folder / "report.html"
    page.write_text(render_html(figures, stats, (), {}, find_examples(scored), calibrate(scored, str(labels))))
    return page.as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_section_on_scores_is_legible(
    browser: Any,  # noqa: F811
    scored_address: str,
    size: tuple[int, int],
    dark: bool,
) -> None:
    set_display(browser, size, dark)
    browser.get(scored_address)
    browser.execute_script("document.querySelector('#scores').scrollIntoView()")
    save_screenshot(browser, f"report-scores-{size[0]}-{dark}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script(SMALLEST) >= 11
    assert browser.execute_script(CONTRAST) == []
    assert browser.execute_script(TOO_WIDE) == []
    broken = "return [...document.images].filter(image => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0 and browser.execute_script("return document.images.length") >= 24
    assert browser.execute_script("return document.scripts.length") == 0


def test_with_many_captioners_the_page_fits_the_window_and_charts_are_legible(
    browser: Any,  # noqa: F811
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    content, stats = report.build_report(run), dataset_stats(run)
    names = [f"captioner-with-a-long-name-{number}" for number in range(9)]
    content["captioners"] = dict.fromkeys(names, content["captioners"]["sharegpt4v"])
    stats["captioners"] = dict.fromkeys(names, stats["captioners"]["llava"])
    page = tmp_path / "report.html"
    page.write_text(render_html(content, stats))
    for size in (PHONE, DESKTOP):
        set_display(browser, size)
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
        assert browser.execute_script(SMALLEST) >= 10


def test_an_a4_print_shows_every_column_of_ten_models(browser: Any, run: Run, tmp_path: Path) -> None:  # noqa: F811
    set_display(browser, (703, 1000))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    content = report.build_report(run)
    metrics = {"world": {way: {"R@1": 0.125, "R@10": 1.0} for way in ("t2i", "i2t")} | {"texts": 500}}
    content["trained"] = {f"lotlip-corner-{number}": {"retrieval": metrics} for number in range(10)}
    page = tmp_path / "report.html"
    page.write_text(render_html(content, dataset_stats(run)))
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 703
    assert browser.execute_script(TOO_WIDE) == []
    last_header = "return [...document.querySelectorAll('th')].find(e => e.innerText == 'lotlip-corner-9')"
    right, text = browser.execute_script(f"{last_header}.getBoundingClientRect().right"), page.read_text()
    assert 0 < right <= 703 and text.count("<bdi>lotlip-corner-") == 10
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_print_is_dark_on_white_and_does_not_clip_the_manifest(browser: Any, address: str) -> None:  # noqa: F811
    set_display(browser, PHONE)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    browser.get(address)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script(CONTRAST) == []
    content_width, box_width, visible = browser.execute_script(
        "const pre = document.querySelector('pre'); return [pre.scrollWidth, pre.clientWidth, pre.checkVisibility()]"
    )
    assert visible and content_width <= box_width
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
