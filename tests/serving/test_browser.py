"""The page in a real browser: photos restored and shown, bad files told of, nothing fetched from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra [dev]")
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.serving.conftest import Served, bomb, png

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no chromium and chromedriver here: apt-get install chromium chromium-driver",
    ),
    pytest.mark.xdist_group("browser"),  # one browser, not one for each process
]
# No first-run pages, no updates, no sandbox (which root cannot have): the test is of our page.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1240,1200",
)
PATIENCE = 60  # seconds, for a machine that is busy with other tests


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, served: Served) -> Any:
    browser.get(served.url)
    until(browser, "#cpl-restore")
    until(browser, "#cpl-examples img")
    return browser


def until(browser: Any, selector: str, words: str = "") -> Any:
    """The first element of ``selector`` once it is there and has ``words`` in it."""

    def found(driver: Any) -> Any:
        elements = driver.find_elements(By.CSS_SELECTOR, selector)
        return next((element for element in elements if words in element.text), None)

    waiting = WebDriverWait(browser, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(found, f"{selector} with {words!r}")


def upload(browser: Any, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    cleared = browser.find_elements(By.CSS_SELECTOR, "#cpl-photo button[aria-label='Clear']")
    for button in cleared:
        button.click()
    until(browser, "#cpl-photo input[type=file]").send_keys(str(path))
    until(browser, "#cpl-photo", path.stem)


def choose(browser: Any, name: str) -> None:
    """Clicks until the choice is taken: while the page is drawn, something else may lie above it."""

    def chosen(driver: Any) -> bool:
        labels = driver.find_elements(By.CSS_SELECTOR, "#cpl-degradation label")
        label = next((label for label in labels if label.text.strip() == name), None)
        if label is None:
            return False
        label.click()
        return bool(label.find_element(By.CSS_SELECTOR, "input").is_selected())

    passing = [StaleElementReferenceException, ElementClickInterceptedException]
    WebDriverWait(browser, PATIENCE, ignored_exceptions=passing).until(chosen, f"no choice {name!r}")


def test_a_photo_is_restored_and_a_bad_one_is_told_of(page: Any, downloads: Path, tmp_path: Path) -> None:
    upload(page, tmp_path / "holiday.png", png(64, 48))
    choose(page, "low light")
    until(page, "#cpl-restore").click()
    assert "64×48 pixels, low light added and restored" in until(page, "#cpl-summary", "PSNR").text
    images = WebDriverWait(page, PATIENCE).until(
        lambda driver: (
            (found := driver.find_elements(By.CSS_SELECTOR, "#cpl-slider img"))
            and len(found) >= 2
            and all(driver.execute_script("return arguments[0].naturalWidth", image) == 64 for image in found)
            and found
        )
    )
    assert len({image.get_attribute("src") for image in images}) == 2  # before and after
    tables = page.find_elements(By.CSS_SELECTOR, "#cpl-routing table[data-level]")
    assert [table.get_attribute("data-level") for table in tables] == ["3", "2", "1"]
    for table in tables:
        assert len(table.find_elements(By.CSS_SELECTOR, "tr.cpl-chosen")) == 1
        assert len(table.find_elements(By.CSS_SELECTOR, "tr")) == 5
    assert "low light" in until(page, "#cpl-routing .cpl-likely").text
    until(page, "#cpl-download").click()
    file = downloads / "holiday_restored.png"
    WebDriverWait(page, PATIENCE).until(lambda driver: file.is_file())
    with Image.open(file) as image:
        assert image.size == (64, 48)

    for content, words in ((b"no image", "no image of a kind"), (bomb(), "far too many pixels"), (png(), "")):
        upload(page, tmp_path / "next.png", content)
        until(page, "#cpl-restore").click()
        if not words:
            break
        assert words in until(page, "#cpl-summary [role=alert]", words).text
        assert "Traceback" not in page.page_source
        assert not page.find_elements(By.CSS_SELECTOR, "#cpl-routing table")
    # After the bad ones a good one goes through again, and as it is: uploading put the choice back.
    until(page, "#cpl-summary", "40×24 pixels, restored as it was")


def test_an_example_is_one_click_and_nothing_comes_from_elsewhere(page: Any, served: Served) -> None:
    until(page, "#cpl-examples button").click()
    assert "300×200 pixels, noise-sigma50 added" in until(page, "#cpl-summary", "PSNR").text
    asked = set()
    for entry in page.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            asked.add(urlsplit(event["params"]["request"]["url"])[:2])
    own = urlsplit(served.url)[:2]
    assert own in asked
    # Chromium's own first page is not ours.
    assert {place for place in asked if place[0] not in ("data", "blob", "chrome", "chrome-untrusted")} == {
        own
    }
    failed = [line["message"] for line in page.get_log("browser") if "Failed to load" in line["message"]]
    assert failed == []


def test_a_file_that_is_too_large_or_of_another_kind_is_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(40, 24) + bytes(400_000))
    field = until(page, "#cpl-photo input[type=file]")
    field.send_keys(str(tmp_path / "large.png"))
    assert "size" in until(page, ".toast-body", "size").text.lower()
