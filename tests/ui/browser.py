"""Headless Chromium, driven by selenium, and the fixtures that give a test the page in it.

A conftest or a test module imports the fixtures ``browser`` and ``page`` and defines ``server``.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from required import absent
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

WAIT = 60.0
"""Seconds after which a condition counts as missed. Generous: no test measures time."""

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """The tab of a Chromium. ``problems`` lists what the browser's console was told in anger since the page was opened.

    Args:
        chromium, driver: programs.
        profile: an empty folder.
    """

    def __init__(self, chromium: str, driver: str, profile: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "INFO"})
        # given both paths, selenium downloads nothing
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def open(self, url: str, key: str | None = None) -> None:
        """Loads the page in a new tab, which has an empty session storage, and enters the key."""
        old = self.driver.current_window_handle
        self.driver.switch_to.new_window("tab")
        new = self.driver.current_window_handle
        self.driver.switch_to.window(old)
        self.driver.close()
        self.driver.switch_to.window(new)
        self.problems()
        self.size(1400, 900)
        self.scheme("light")
        self.driver.get(url)
        if key:
            self.type("#key", key)
            self.press(Keys.TAB)

    def problems(self) -> list[str]:
        """Errors, warnings and messages of the console since the last call, broken rules of the CSP among them."""
        # the browser itself notes refused requests, as "network"
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression in the page; promises are awaited."""
        return self.driver.execute_script(f"return {script}")

    def wait(self, script: str) -> Any:
        """The expression's value once it is true."""
        try:
            return WebDriverWait(self.driver, WAIT, 0.05).until(lambda _: self.run(script))
        except TimeoutException:
            shown = self.run("document.body.innerText")
            raise AssertionError(f"never true: {script}\n{shown}\n{self.problems()}") from None

    def text(self, selector: str) -> str:
        """Text of the first element that matches, as shown, once there is any."""
        return self.wait(f"document.querySelector({json.dumps(selector)})?.innerText")

    def point(self, selector: str) -> WebElement:
        """Moves the mouse to the first element that matches, once it is shown."""
        self.wait(f"document.querySelector({json.dumps(selector)})?.getClientRects().length")
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver, 0).move_to_element(element).perform()
        return element

    def click(self, selector: str) -> None:
        """A click of the mouse."""
        self.point(selector)
        ActionChains(self.driver, 0).click().perform()

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        self.click(selector)
        self.press(Keys.CONTROL + "a")
        self.insert(text)

    def insert(self, text: str) -> None:
        """Text at the caret, all at once."""
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})

    def press(self, key: str) -> None:
        """One of selenium's keys, or several together, to what has the focus."""
        self.driver.switch_to.active_element.send_keys(key)

    def size(self, width: int, height: int) -> None:
        """Size of the window in CSS pixels; a real window cannot be as narrow as a telephone's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def programs() -> tuple[str, str] | None:
    """Chromium and its driver, where both are on the path."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Page]:
    """Headless Chromium. SO8T_REQUIRE=browser makes its absence a failure."""
    found = programs()
    if found is None:
        absent("browser", "no chromium or no chromedriver on the path: apt-get install chromium chromium-driver")
    page = Page(*found, tmp_path_factory.mktemp("chromium"))
    yield page
    page.driver.quit()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page open, the key entered. Fails where the page threw, warned, or broke a rule of its CSP."""
    browser.open(server.url, server.key)
    yield browser
    problems = browser.problems()
    assert not problems, problems
