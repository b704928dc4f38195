"""A study's page on the screens of a desk and a phone, in a real browser, and what may be wrong with it there."""

from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

DESK, PHONE, PAPER = (1400, 900), (390, 844), (718, 1016)  # pixels; paper: A4 without its margins
# Boxes of an SVG's texts that cover each other by more than a pixel.
OVERLAPS = """return [...document.querySelectorAll("svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([a, p], i) => texts.slice(0, i).filter(([, q]) =>
    p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1
  ).map(([b]) => `${svg.getAttribute("aria-label")}: ${a} on ${b}`));
})"""
# What is wider than the page, or is cut off; boxes that scroll may hold more.
OUTSIDE = """return [...document.querySelectorAll("body *")].filter((e) =>
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg") ||
  arguments[0] && (e.getBoundingClientRect().right > innerWidth + 1 ||
    e.scrollHeight > e.clientHeight + 1 && e.clientHeight && getComputedStyle(e).overflowY != "visible")
).map((e) => e.outerHTML.slice(0, 80))"""


class Report:
    """The page of a study, on a screen."""

    def __init__(self, page: Path, driver: webdriver.Chrome):
        self.page, self.driver = page, driver

    def open(
        self, size: tuple[int, int] = DESK, theme: str = "light", media: str = "screen", scripts: bool = True
    ) -> None:
        width, height = size
        do = self.driver.execute_cdp_cmd
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        do("Emulation.setDeviceMetricsOverride", screen)
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        do("Emulation.setEmulatedMedia", {"media": media, "features": features})
        do("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.driver.get("about:blank")
        self.driver.get(self.page.as_uri())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def spots(self, trial: str) -> list[WebElement]:
        """Its marks in the figures."""
        return self.all(f"section.size .spot[data-trial='{trial}'] circle")

    def point_at(self, what: WebElement) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", what)
        ActionChains(self.driver, duration=0).move_to_element(what).perform()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def lit(self) -> set[str]:
        """The trials that are marked."""
        return {str(element.get_attribute("data-trial")) for element in self.all(".lit")}

    def tip(self) -> dict[str, str]:
        """What is shown beside a trial."""
        names, values = ([element.text for element in self.all(f"#tip:not([hidden]) {tag}")] for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))

    def row(self, trial: str) -> dict[str, str]:
        """What the table says of it; its cells that are not empty."""
        read = "return [...arguments[0]].map((cell) => cell.textContent)"
        heads = self.driver.execute_script(read, self.all("table.trials th"))
        cells = self.driver.execute_script(read, self.all(f"table.trials tr[data-trial='{trial}'] td"))
        return {head: cell for head, cell in zip(heads, cells, strict=True) if cell}

    def box(self, element: WebElement) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        box = self.driver.execute_script("return arguments[0].getBoundingClientRect()", element)
        return box["left"], box["top"], box["right"], box["bottom"]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def errors(self) -> list[str]:
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]
