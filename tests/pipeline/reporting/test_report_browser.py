"""The report in a real browser: on a phone, on a desk, in the dark and in print all of it can be read.

Needs what `test_view_browser` needs.
"""

from pathlib import Path
from typing import Any

import pytest

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.reporting import report
from lotlip_data.pipeline.reporting.html import render
from tests.pipeline.reporting.test_report import run  # noqa: F401
from tests.pipeline.viewer.test_browser import CONTRAST, DESKTOP, PHONE, browser, look  # noqa: F401

pytestmark = pytest.mark.slow

# The smallest text of a chart as it is drawn, in pixels of the page.
SMALLEST = """
const drawn = text => { const {a, b} = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b) };
return Math.min(...[...document.querySelectorAll("svg text")].map(drawn));
"""
# Tables that do not fit, by their first words.
TOO_WIDE = """
const boxes = [...document.querySelectorAll(".wide")].filter(box => box.scrollWidth > box.clientWidth);
return boxes.map(box => box.innerText.slice(0, 40));
"""


@pytest.fixture(scope="module")
def address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    page = tmp_path_factory.mktemp("report") / "report.html"
    found = report.figures(run, price=2.0)
    found["captioners"]["sharegpt4v"]["rejected"] = {"https://a.example/" + "a" * 300: 1}
    found["failures"]["hosts"] = {"a-very-long-name-of-a-host." * 4 + "example": {"http 404": 3, "truncated": 2}}
    page.write_text(render(found, dataset_stats(run)))
    return page.as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_every_text_can_be_read(browser: Any, address: str, size: tuple[int, int], dark: bool) -> None:  # noqa: F811
    look(browser, size, dark)
    browser.get(address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script(SMALLEST) >= 11
    assert browser.execute_script(CONTRAST) == []
    assert browser.execute_script(TOO_WIDE) == []


def test_a_print_on_a4_has_every_column_of_ten_models(browser: Any, run: Run, tmp_path: Path) -> None:  # noqa: F811
    look(browser, (703, 1000))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    found = report.figures(run)
    figures = {"world": {way: {"R@1": 0.125, "R@10": 1.0} for way in ("t2i", "i2t")} | {"texts": 500}}
    found["trained"] = {f"lotlip-corner-{number}": {"retrieval": figures} for number in range(10)}
    page = tmp_path / "report.html"
    page.write_text(render(found, dataset_stats(run)))
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 703
    assert browser.execute_script(TOO_WIDE) == []
    last = "return [...document.querySelectorAll('th')].find(e => e.innerText == 'lotlip-corner-9')"
    right, text = browser.execute_script(f"{last}.getBoundingClientRect().right"), page.read_text()
    assert 0 < right <= 703 and text.count("<bdi>lotlip-corner-") == 10
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_print_is_dark_on_white_and_has_the_manifest_to_the_end_of_its_lines(browser: Any, address: str) -> None:  # noqa: F811
    look(browser, PHONE)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    browser.get(address)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script(CONTRAST) == []
    wide, shown, seen = browser.execute_script(
        "const one = document.querySelector('pre'); return [one.scrollWidth, one.clientWidth, one.checkVisibility()]"
    )
    assert seen and wide <= shown
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
