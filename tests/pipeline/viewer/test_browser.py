"""The page in a real browser: it works without a script, loads nothing from elsewhere, and is legible everywhere.

Needs the system's Chromium and its driver (`tools/browser.sh`, which `make test-slow` calls). Pictures of what was seen
are left in the folder that LOTLIP_DATA_SCREENSHOTS names, where it is set.
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
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from lotlip_data.manifests import storage
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.viewer import dataset_fixture as view_run
from tests.pipeline.viewer.test_hostile import HOSTILE
from tests.training.run_fixture import write_towers

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
DESKTOP, PHONE = (1280, 900), (390, 844)
PATHS = ["/", "/?show=images", "/sample/0/3?of=llava", "/search?text=a+red+ring", "/quarantine", "/nothing"]

# Of every text that is seen: the contrast with what lies behind it (WCAG 2), where that is less than 4.5.
CONTRAST = r"""
const channel = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = colour => { const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
    return 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255) };
const ground = one => {
    while (/^rgba.*, 0\)$/.test(getComputedStyle(one).backgroundColor)) one = one.parentElement;
    return getComputedStyle(one).backgroundColor };
const faint = new Set();
for (const one of document.body.querySelectorAll("*")) {
    if (![...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())) continue;
    const [light, dark] = [getComputedStyle(one).color, ground(one)].map(luminance).sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faint.add(one.tagName + "." + one.className + " " + contrast.toFixed(2));
}
return [...faint];
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server over a run with hostile texts among others, two models, and a quarantine."""
    folder = tmp_path_factory.mktemp("view")

    def change(number: int, row: view_run.Row) -> None:
        if number % 5 == 0:
            text = HOSTILE[number % len(HOSTILE)]
            row |= {"raw": text, "raws": [text], "llava": text * 3, "llava_sub": [text], "llava_flags": "repetition"}
        if number % 7 == 0:
            row |= {"sharegpt4v": None, "sharegpt4v_sub": None}

    made = view_run.make(folder / "run", samples=20, change=change, picture=lambda n: render(sample_scene(n), 96))
    rows = [dict.fromkeys(QUARANTINE.names, text) for text in HOSTILE]
    storage.create(made.quarantine("images", "00000.parquet"), fake_run.parquet(rows, QUARANTINE))
    towers = write_towers(folder / "towers")
    checkpoints = [str(folder / name / "model") for name in ("lit", "lotlip")]
    for url in checkpoints:
        load_model(make_config(**towers, context_length=64)).save(url)
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "view", made.url, "--port", "0"]
    command += [part for url in checkpoints for part in ("--checkpoint", url)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.match(r"view: (http://127\.0\.0\.1:\d+)/", said)
        assert found, said
        yield found[1]
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(300)
        server.kill()
    assert server.wait() == 0  # Ctrl-C is how it ends


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver here: bash tools/browser.sh, as root on Debian, installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def look(browser: Any, size: tuple[int, int], dark: bool = False) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def follow(browser: Any, element: Any) -> None:
    """Click a link or a button, and wait for the page that comes of it: a click may return before."""
    browser.execute_script("window.before = true")
    element.click()
    come = "return !window.before && document.readyState == 'complete'"
    wait = WebDriverWait(browser, 60, ignored_exceptions=[WebDriverException])  # between two pages there is none to ask
    wait.until(lambda _: browser.execute_script(come))


def loaded(browser: Any) -> None:
    """Wait until every image is there or has failed; those further down are loaded only when they are looked at."""
    browser.execute_script("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
    done = "return [...document.images].every(one => one.complete)"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(done))


def keep(browser: Any, name: str) -> None:
    if folder := os.environ.get("LOTLIP_DATA_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(Path(folder, f"{name}.png")))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_is_legible_whole_and_its_own(browser: Any, address: str, size: Any, dark: bool) -> None:
    look(browser, size, dark)
    for path in PATHS:
        browser.get(address + path)
        loaded(browser)
        keep(browser, f"{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}-{PATHS.index(path)}")
        broken = browser.execute_script(
            "return [...document.images].filter(one => !one.naturalWidth).map(one => one.src)"
        )
        assert broken == [], path
        wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{path} is {wide} pixels wider than the window"
        assert browser.execute_script(CONTRAST) == [], path
        from_where = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert from_where and all(url.startswith(address + "/") for url in from_where)
        complaints = [line["message"] for line in browser.get_log("browser") if "/nothing " not in line["message"]]
        assert complaints == [], path
        assert browser.execute_script("return document.scripts.length") == 0


def test_a_person_can_look_filter_page_and_map(browser: Any, address: str) -> None:
    look(browser, DESKTOP)
    browser.get(address)
    cards = browser.find_elements(By.CSS_SELECTOR, "article.card")
    assert len(cards) == 24 and HOSTILE[0] in cards[0].text  # as text
    tops = {one.location["y"] for one in cards[1].find_elements(By.CSS_SELECTOR, ".long")}
    assert len(tops) == 1  # the long texts stand side by side
    follow(browser, browser.find_element(By.CSS_SELECTOR, "a[rel=next]"))
    assert browser.find_element(By.CSS_SELECTOR, "article.card").get_attribute("id") == "s1-4"
    follow(browser, browser.find_element(By.CSS_SELECTOR, "a[rel=prev]"))
    assert browser.find_element(By.CSS_SELECTOR, "article.card").get_attribute("id") == "s0-0"

    Select(browser.find_element(By.NAME, "flag")).select_by_value("repetition")
    browser.find_element(By.NAME, "q").send_keys("script")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.ask button"))
    found = browser.find_elements(By.CSS_SELECTOR, "article.card")
    assert [one.get_attribute("id") for one in found] == ["s0-0", "s0-10", "s1-0", "s1-10", "s2-0", "s2-10"]
    assert browser.find_element(By.NAME, "q").get_attribute("value") == "script"

    browser.get(f"{address}/sample/0/3")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "[data-captioner=sharegpt4v] a.number"))
    loaded(browser)
    maps = browser.find_elements(By.CSS_SELECTOR, ".maps img")
    assert len(maps) == 3 and len({one.location["y"] for one in maps}) == 1
    keep(browser, "maps")


def test_in_place_of_an_image_that_cannot_be_had_there_are_words(browser: Any, address: str) -> None:
    look(browser, DESKTOP)
    browser.get(f"{address}/?show=images")
    loaded(browser)
    image = browser.find_element(By.CSS_SELECTOR, ".picture img")

    def ink() -> int:
        """Pixels of other colours than the ground's."""
        picture = np.asarray(Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB"))
        return int((picture != picture[-9, picture.shape[1] // 2]).any(axis=2).sum())

    browser.execute_script("arguments[0].src = '/image/0/999'", image)
    loaded(browser)
    whole = ink()
    keep(browser, "lost")
    browser.execute_script("document.styleSheets[0].insertRule('img::after { content: none !important }')")
    name = ink()
    browser.execute_script("arguments[0].alt = ''", image)
    assert whole > name > ink()  # the image's name, and that it cannot be shown


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_the_maps_of_two_models_stand_side_by_side(browser: Any, address: str, dark: bool) -> None:
    look(browser, PHONE, dark)
    browser.get(f"{address}/sample/0/3?of=llava")
    loaded(browser)
    image, left, right = (one.rect for one in browser.find_elements(By.CSS_SELECTOR, ".maps img"))
    assert left["y"] == right["y"] >= image["y"] + image["height"]
    assert left["width"] == right["width"] == image["width"] >= 150
    assert left["x"] + left["width"] < right["x"] and right["x"] + right["width"] <= PHONE[0]
    browser.execute_script("document.querySelector('#maps').scrollIntoView()")
    keep(browser, f"phone-{'dark' if dark else 'light'}-maps")


def test_on_a_phone_everything_of_the_quarantine_is_seen_without_scrolling_sideways(browser: Any, address: str) -> None:
    look(browser, PHONE)
    browser.get(f"{address}/quarantine")
    cells = browser.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")
    names = [one.get_attribute("data-name") for one in cells]
    assert {"reason", "detail", "url", "uid"} <= set(names)
    assert all(one.rect["x"] >= 0 and one.rect["x"] + one.rect["width"] <= PHONE[0] for one in cells)
    named = "return getComputedStyle(arguments[0], '::before').content"
    assert ["".join(re.findall(r"\w", browser.execute_script(named, one))) for one in cells] == names


def test_a_person_can_have_features_computed_and_search(browser: Any, address: str) -> None:
    look(browser, DESKTOP)
    browser.get(f"{address}/search")
    browser.find_element(By.NAME, "text").send_keys("a red ring")
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.ask button"))
    follow(browser, browser.find_element(By.CSS_SELECTOR, "form.note button"))

    def done(_: Any) -> bool:  # the frame looks again by itself
        browser.switch_to.default_content()
        frames = browser.find_elements(By.CSS_SELECTOR, "iframe")
        if not frames:
            return True  # the features were there before the page was
        browser.switch_to.frame(frames[0])
        text = browser.find_element(By.TAG_NAME, "body").text
        browser.switch_to.default_content()
        return "look again" in text

    box = browser.find_element(By.NAME, "text")
    box.send_keys(", large")
    for size, dark in ((PHONE, True), (PHONE, False), (DESKTOP, False)):
        look(browser, size, dark)
        keep(browser, f"progress-{size[0]}-{'dark' if dark else 'light'}")
    WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException]).until(done)
    assert box.get_attribute("value") == "a red ring, large"  # what is typed meanwhile stays
    browser.get(f"{address}/search?text=a+red+ring")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".wall figure")) == 48
    loaded(browser)
    assert browser.find_elements(By.CSS_SELECTOR, "form.note button") == []
    assert browser.find_element(By.NAME, "text").get_attribute("value") == "a red ring"
    keep(browser, "search")
