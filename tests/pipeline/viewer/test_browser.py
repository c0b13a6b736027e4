"""The pages in a real browser: they load from their server only, are legible, and can be used with the keyboard.

The tests need the system's Chromium and its driver, which `tools/browser.sh` installs (`make test-slow` calls it). If
LOTLIP_DATA_SCREENSHOTS is set, they save screenshots in the folder that it names.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model
from tests.pipeline import run_fixture
from tests.pipeline.viewer import dataset_fixture
from tests.pipeline.viewer.test_hostile import HOSTILE
from tests.training.run_fixture import write_towers

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
DESKTOP, PHONE = (1280, 900), (390, 844)
PATHS = [
    "/",
    "/?show=images",
    "/?show=short&sort=longest",
    "/?q=zebra",
    "/sample/0/3?of=llava",
    "/search",
    "/search?text=a+red+ring",
    "/quarantine",
    "/quarantine?kind=captions/llava",
    "/nothing",
]

SCORED_PATHS = [
    "/",
    "/?show=images",
    "/?show=short&sort=score-low&score=agreement",
    "/?low=-1.5&high=-0.5&level=sub_captions",
    "/sample/0/3",
    "/quarantine?what=llava_sub",
]

# The visible texts whose contrast with their background (WCAG 2) is below 4.5.
CONTRAST = r"""
const channel = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = colour => { const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
    return 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255) };
const background = element => {
    while (/^rgba.*, 0\)$/.test(getComputedStyle(element).backgroundColor)) element = element.parentElement;
    return getComputedStyle(element).backgroundColor };
const faint = new Set();
for (const element of document.body.querySelectorAll("*")) {
    if (![...element.childNodes].some(node => node.nodeType == 3 && node.data.trim())) continue;
    const [light, dark] = [getComputedStyle(element).color, background(element)].map(luminance).sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faint.add(element.tagName + "." + element.className + " " + contrast.toFixed(2));
}
return [...faint];
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for a run with hostile texts, two models, and a quarantine."""
    folder = tmp_path_factory.mktemp("view")

    def change(number: int, row: dataset_fixture.Row) -> None:
        if number % 5 == 0:
            text = HOSTILE[number % len(HOSTILE)]
            row |= {"raw": text, "raws": [text], "llava": text * 3, "llava_sub": [text], "llava_flags": "repetition"}
        if number % 7 == 0:
            row |= {"sharegpt4v": None, "sharegpt4v_sub": None}

    run = dataset_fixture.make(folder / "run", samples=20, change=change, picture=lambda n: render(sample_scene(n), 96))
    rows = [dict.fromkeys(QUARANTINE.names, text) for text in HOSTILE]
    storage.create(run.quarantine("images", "00000.parquet"), run_fixture.parquet(rows, QUARANTINE))
    seeds = list(range(4))
    run_fixture.write_images(run, 0, seeds, 96)
    failed = [{**row, "error": text * 20} for row, text in zip(run_fixture.fetched_rows(run, 0), HOSTILE, strict=False)]
    captions = [{name: row.get(name) for name in schema.CAPTIONS.names} for row in failed]
    storage.create(run.quarantine("captions", "llava", "00000.parquet"), run_fixture.parquet(captions, schema.CAPTIONS))
    towers = write_towers(folder / "towers")
    checkpoints = [str(folder / name / "model") for name in ("lit", "lotlip")]
    for url in checkpoints:
        load_model(make_config(**towers, context_length=64)).save(url)
    with serving(run, *(part for url in checkpoints for part in ("--checkpoint", url))) as served:
        yield served


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for a run with scores and hostile texts, without models."""

    def change(number: int, row: dataset_fixture.Row) -> None:
        if number % 5 == 0:
            text = HOSTILE[number % len(HOSTILE)]
            row |= {"raw": text, "raws": [text], "llava": text * 3, "llava_sub": [text]}
            row |= {f"llava_sub_{end}": [0.25] for end in ("scores", "similarity", "agreement")}

    folder = tmp_path_factory.mktemp("view")
    run = dataset_fixture.make(folder / "scored", samples=20, change=change, scorers=dataset_fixture.SCORERS)
    dropped = [
        dict.fromkeys(schema.DROPPED.names)
        | {"key": "000000001", "what": "llava_sub", "reason": reason, "detail": text}
        for reason, text in zip(("similarity_too_low", "agreement_too_high"), HOSTILE, strict=False)
    ]
    storage.create(run.quarantine("shard", "00000.parquet"), run_fixture.parquet(dropped, schema.DROPPED))
    run_fixture.write_images(run, 0, list(range(4)), 96)
    with serving(run) as served:
        yield served


@contextlib.contextmanager
def serving(run: Run, *options: str) -> Iterator[str]:
    """The address of `view` for a run."""
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "view", run.url, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.match(r"view: (http://127\.0\.0\.1:\d+)/", line)
        assert match, line
        yield match[1]
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(300)
        process.kill()
    assert process.wait() == 0  # Ctrl-C is the normal way to stop it


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium or its driver is missing; on Debian, run `bash tools/browser.sh` as root")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def set_display(browser: Any, size: tuple[int, int], dark: bool = False) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def follow(browser: Any, element: Any) -> None:
    """Click a link or a button, and wait for the new page, because a click may return before it is loaded."""
    browser.execute_script("window.before = true")
    element.click()
    is_loaded = "return !window.before && document.readyState == 'complete'"
    wait = WebDriverWait(browser, 60, ignored_exceptions=[WebDriverException])  # between two pages, scripts fail
    wait.until(lambda _: browser.execute_script(is_loaded))


def wait_for_images(browser: Any) -> None:
    """Wait until every image is loaded or has failed, including those that load lazily."""
    browser.execute_script("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    all_complete = "return [...document.images].every(image => image.complete)"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(all_complete))


def save_screenshot(browser: Any, name: str) -> None:
    if folder := os.environ.get("LOTLIP_DATA_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(Path(folder, f"{name}.png")))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_is_legible_fits_the_window_and_loads_from_its_server_only(
    browser: Any, address: str, size: Any, dark: bool
) -> None:
    set_display(browser, size, dark)
    check_pages(browser, address, PATHS, f"{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_of_a_dataset_with_scores_is_legible_and_fits_the_window(
    browser: Any, scored: str, size: Any, dark: bool
) -> None:
    set_display(browser, size, dark)
    name = f"scores-{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}"
    check_pages(browser, scored, SCORED_PATHS, name)


def check_pages(browser: Any, address: str, paths: list[str], name: str) -> None:
    """Assert that pages are legible, fit the window and load from their server only."""
    for path in paths:
        browser.get(address + path)
        wait_for_images(browser)
        save_screenshot(browser, f"{name}-{paths.index(path)}")
        broken = browser.execute_script(
            "return [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
        )
        assert broken == [], path
        excess = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert excess <= 0, f"{path} is {excess} pixels wider than the window"
        assert browser.execute_script(CONTRAST) == [], path
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded and all(url.startswith(address + "/") for url in loaded)
        messages = [line["message"] for line in browser.get_log("browser") if "/nothing " not in line["message"]]
        assert messages == [], path
        assert browser.execute_script("return [...document.scripts].map(script => script.src)") == [
            f"{address}/view.js"
        ]


def test_a_user_can_browse_filter_page_and_draw_maps(browser: Any, address: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(address)
    cards = browser.find_elements(By.CSS_SELECTOR, "article.card")
    assert len(cards) == 24 and HOSTILE[0] in cards[0].text  # as text
    tops = {text.location["y"] for text in cards[1].find_elements(By.CSS_SELECTOR, ".long")}
    assert len(tops) == 1  # the long texts are side by side
    follow(browser, browser.find_element(By.CSS_SELECTOR, "a[rel=next]"))
    assert browser.find_element(By.CSS_SELECTOR, "article.card").get_attribute("id") == "s1-4"
    follow(browser, browser.find_element(By.CSS_SELECTOR, "a[rel=prev]"))
    assert browser.find_element(By.CSS_SELECTOR, "article.card").get_attribute("id") == "s0-0"

    Select(browser.find_element(By.NAME, "flag")).select_by_value("repetition")
    browser.find_element(By.NAME, "q").send_keys("script")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.query button"))
    cards = browser.find_elements(By.CSS_SELECTOR, "article.card")
    assert [card.get_attribute("id") for card in cards] == ["s0-0", "s0-10", "s1-0", "s1-10", "s2-0", "s2-10"]
    assert browser.find_element(By.NAME, "q").get_attribute("value") == "script"

    browser.get(f"{address}/sample/0/3")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "[data-captioner=sharegpt4v] a.number"))
    wait_for_images(browser)
    maps = browser.find_elements(By.CSS_SELECTOR, ".maps img")
    assert len(maps) == 3 and len({picture.location["y"] for picture in maps}) == 1
    save_screenshot(browser, "maps")


def test_a_user_can_sort_and_filter_by_a_score_and_see_it(browser: Any, scored: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(scored)
    Select(browser.find_element(By.NAME, "score")).select_by_value("similarity")
    browser.find_element(By.NAME, "high").send_keys("0.25")
    browser.find_element(By.CSS_SELECTOR, "details.display summary").click()
    Select(browser.find_element(By.NAME, "sort")).select_by_value("score-low")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.query button"))
    tags = browser.find_elements(By.CSS_SELECTOR, "article.card .long .score")
    lowest = [min(float(tag.text.split()[-1]) for tag in tags[first : first + 2]) for first in range(0, len(tags), 2)]
    assert lowest == sorted(lowest) and 0 <= lowest[0] < lowest[-1] <= 0.25
    colour = "return getComputedStyle(arguments[0]).backgroundColor"
    spans = [browser.find_elements(By.CSS_SELECTOR, f"article .sub.{css}") for css in ("t0", "t4")]
    assert all(spans) and len({browser.execute_script(colour, each[0]) for each in spans}) == 2
    assert spans[0][0].find_element(By.CSS_SELECTOR, ".number").text.endswith("−−")
    assert "similarity" in spans[0][0].get_attribute("title")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "article.card .picture"))
    assert "score%3Dsimilarity" in browser.current_url
    assert browser.find_element(By.CSS_SELECTOR, "table.scores th:nth-child(2)").text == "combined score"


def press(browser: Any, key: str) -> None:
    """Press a key that leads to another page, and wait for it."""
    browser.execute_script("window.before = true")
    ActionChains(browser).send_keys(key).perform()
    is_loaded = "return !window.before && document.readyState == 'complete'"
    wait = WebDriverWait(browser, 60, ignored_exceptions=[WebDriverException])
    wait.until(lambda _: browser.execute_script(is_loaded))


def test_keys_lead_through_the_samples_of_a_list_and_not_while_a_text_is_typed(browser: Any, address: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(f"{address}/?size=12&q=circle")
    follow(browser, browser.find_elements(By.CSS_SELECTOR, ".picture")[1])
    first = browser.current_url
    press(browser, Keys.ARROW_RIGHT)
    second = browser.current_url
    assert second != first and "list=" in second
    press(browser, Keys.ARROW_LEFT)
    assert browser.current_url == first
    ActionChains(browser).send_keys("/").perform()
    assert browser.switch_to.active_element.get_attribute("name") == "text"
    ActionChains(browser).send_keys("l", Keys.ARROW_LEFT).perform()
    assert browser.current_url == first and browser.switch_to.active_element.get_attribute("value") == "l"
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    press(browser, "l")
    assert browser.current_url.startswith(f"{address}/?q=circle&size=12&at=")


def test_a_copied_text_is_the_text_without_the_numbers_of_its_sub_captions(browser: Any, address: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(f"{address}/sample/0/3")
    text = browser.execute_async_script(
        "const done = arguments[0]; let copied = '';"
        "navigator.clipboard.writeText = async text => { copied = text; };"
        "document.querySelector('[data-copy=\"#long-2\"]').click(); setTimeout(() => done(copied), 100)"
    )
    assert text == dataset_fixture.row_of(3)["sharegpt4v"]


def test_a_shortened_text_opens_when_it_is_clicked(browser: Any, address: str) -> None:
    set_display(browser, PHONE)
    browser.get(f"{address}/?show=short")
    text = browser.find_element(By.CSS_SELECTOR, "#s0-14 details.long p")
    browser.execute_script("arguments[0].append(' and more words'.repeat(60))", text)
    before = text.size["height"]
    browser.execute_script("arguments[0].click()", text)
    assert text.size["height"] > 2 * before


def test_an_image_that_cannot_be_loaded_is_replaced_by_text(browser: Any, address: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(f"{address}/?show=images")
    wait_for_images(browser)
    image = browser.find_element(By.CSS_SELECTOR, ".picture img")

    def ink() -> int:
        """Return the number of pixels that differ from the background colour."""
        picture = np.asarray(Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB"))
        return int((picture != picture[-9, picture.shape[1] // 2]).any(axis=2).sum())

    browser.execute_script("arguments[0].src = '/image/0/999'", image)
    wait_for_images(browser)
    with_notice = ink()
    save_screenshot(browser, "missing-image")
    browser.execute_script("document.styleSheets[0].insertRule('img::after { content: none !important }')")
    without_notice = ink()
    browser.execute_script("arguments[0].alt = ''", image)
    assert with_notice > without_notice > ink()  # the notice, and the alternative text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_the_maps_of_two_models_are_side_by_side(browser: Any, address: str, dark: bool) -> None:
    set_display(browser, PHONE, dark)
    browser.get(f"{address}/sample/0/3?of=llava")
    wait_for_images(browser)
    image, left, right = (picture.rect for picture in browser.find_elements(By.CSS_SELECTOR, ".maps img"))
    assert left["y"] == right["y"] >= image["y"] + image["height"]
    assert left["width"] == right["width"] == image["width"] >= 150
    assert left["x"] + left["width"] < right["x"] and right["x"] + right["width"] <= PHONE[0]
    browser.execute_script("document.querySelector('#maps').scrollIntoView()")
    save_screenshot(browser, f"phone-{'dark' if dark else 'light'}-maps")


def test_on_a_phone_the_quarantine_does_not_scroll_sideways(browser: Any, address: str) -> None:
    set_display(browser, PHONE)
    browser.get(f"{address}/quarantine")
    cells = browser.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")
    names = [cell.get_attribute("data-name") for cell in cells]
    assert {"reason", "detail", "url", "uid"} <= set(names)
    assert all(cell.rect["x"] >= 0 and cell.rect["x"] + cell.rect["width"] <= PHONE[0] for cell in cells)
    label = "return getComputedStyle(arguments[0], '::before').content"
    assert ["".join(re.findall(r"\w", browser.execute_script(label, cell))) for cell in cells] == names


def test_a_user_can_compute_features_and_search(browser: Any, address: str) -> None:
    set_display(browser, DESKTOP)
    browser.get(f"{address}/search")
    browser.find_element(By.NAME, "text").send_keys("a red ring")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.query button"))
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.note button"))

    def is_complete(_: Any) -> bool:  # the frame reloads itself
        browser.switch_to.default_content()
        frames = browser.find_elements(By.CSS_SELECTOR, "iframe")
        if not frames:
            return True  # the features were complete before the page was rendered
        browser.switch_to.frame(frames[0])
        text = browser.find_element(By.TAG_NAME, "body").text
        browser.switch_to.default_content()
        return "Update the results" in text

    box = browser.find_element(By.NAME, "text")
    box.send_keys(", large")
    for size, dark in ((PHONE, True), (PHONE, False), (DESKTOP, False)):
        set_display(browser, size, dark)
        save_screenshot(browser, f"progress-{size[0]}-{'dark' if dark else 'light'}")
    WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException]).until(is_complete)
    assert box.get_attribute("value") == "a red ring, large"  # the frame keeps what is typed
    browser.get(f"{address}/search?text=a+red+ring")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".images figure")) == 48
    wait_for_images(browser)
    assert browser.find_elements(By.CSS_SELECTOR, "form.note button") == []
    assert browser.find_element(By.NAME, "text").get_attribute("value") == "a red ring"
    save_screenshot(browser, "search")
