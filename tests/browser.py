"""A real Chromium without a window, driven by selenium."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "no Chromium with its driver here: apt-get install chromium chromium-driver"
WAIT_S = 60.0


def chromium(folder: Path, *arguments: str) -> webdriver.Chrome:
    """`folder`: for its profile. What pages write to the console is kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(str(DRIVER)))


def screenshots(otherwise: Path) -> Path:
    """Where they are kept."""
    return Path(os.environ.get("CCA_RAY_SCREENSHOTS", otherwise))


class Browser:
    """Pages of one MLflow server."""

    def __init__(self, url: str, folder: Path):
        self.driver = chromium(folder)
        self.url, self.folder = url, screenshots(folder)

    def open(self, page: str, height: int = 1000) -> None:
        """What is below the window's end MLflow may not draw."""
        self.follow(f"{self.url}/#{page}{'&' if '?' in page else '?'}workflowType=machine_learning", height)

    def follow(self, link: str, height: int = 1000) -> None:
        """A whole link, as it is printed."""
        self.driver.set_window_size(1500, height)
        self.driver.get("about:blank")  # a change after # alone would not load anew
        self.driver.get(link)

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait_for(self, *words: str) -> None:
        """Until the page shows all of these."""

        def there(_: object) -> bool:
            self.close_chat()
            return all(word in self.text() for word in words)

        try:
            WebDriverWait(self.driver, WAIT_S).until(there)
        except TimeoutException:  # the page as it is now, not as it was when the wait began
            pytest.fail(f"no {' or '.join(words)} in:\n{self.text()}")

    def all(self, selector: str, least: int = 1) -> list[WebElement]:
        """Elements by a CSS selector, when there are so many."""
        WebDriverWait(self.driver, WAIT_S).until(
            lambda _: len(self.driver.find_elements(By.CSS_SELECTOR, selector)) >= least, selector
        )
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def picture(self, step: int) -> bytes:
        """The samples of this step, as a PNG: by the number beside the slider."""
        (number,) = self.all("input[type=number]")
        number.click()
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(step), Keys.TAB)
        (image,) = self.all(f"img[src*='step%2B{step}%2B']")
        WebDriverWait(self.driver, WAIT_S).until(lambda _: image.get_property("naturalWidth"))
        return image.screenshot_as_png

    def close_chat(self) -> None:
        """It covers a third of the page, and MLflow does not draw columns that it covers."""
        for chat in self.driver.find_elements(
            By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']"
        ):
            with suppress(WebDriverException):  # it is just going, or not yet whole
                chat.click()

    def shoot(self, name: str) -> None:
        self.close_chat()
        time.sleep(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))
