"""The report in a real browser, as people use it: trials that are pointed at, tapped or reached by keys."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cca_ray.contracts import ROLES
from cca_ray.evaluation.sampler import image_grid
from cca_ray.report import write_report
from cca_ray.reporting.results import picture_of, read_study
from tests.browser import CHROMIUM, DRIVER, MISSING, chromium, screenshots
from tests.reporting.screens import DESK, OUTSIDE, OVERLAPS, PAPER, PHONE, Report
from tests.studies import EVIL, make_study

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

FIGURES = 5  # of a size
BEST, FAILED = "search-3", "search-11"


def draw_samples(study: Path) -> None:
    """Such as trials and the final comparison leave: of images of 8 by 8 pixels."""
    rng, (size,) = np.random.default_rng(0), read_study(study.parent, study.name).sizes

    def draw(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_grid(rng.integers(0, 255, (80, 8, 8, 3), dtype=np.uint8), 10)).save(path)

    for t in size.of("search"):
        if t.rungs:
            draw(study / "trials" / t.frozen.user_attrs["key"] / f"samples-{t.rungs[-1].step:06d}.png")
    for role in ROLES[:4]:
        draw(study / "digits_s" / picture_of(role))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    study = make_study(tmp_path_factory.mktemp("runs") / "one")
    draw_samples(study)
    page = write_report([read_study(study.parent, "one")], study / "report")
    driver = chromium(tmp_path_factory.mktemp("chromium"), "--proxy-server=127.0.0.1:9")
    yield Report(page, driver)
    driver.quit()


def test_a_trial_that_is_pointed_at_is_marked_everywhere_and_its_row_and_samples_are_shown(report: Report):
    report.open()
    assert report.all("#tip")[0].is_displayed() is False
    marks = report.spots(BEST)
    assert len(marks) == FIGURES
    for mark in marks:
        report.point_at(mark)
        assert report.lit() == {BEST}
        assert len(report.all(".spot.lit")) == FIGURES
        assert len(report.all("tr.lit")) == 2  # of the finalists and of all trials
        assert report.tip() == report.row(BEST)
        report.point_at(report.all("h1")[0])
        assert report.lit() == set()
        assert report.tip() == {}
    shown = report.row(BEST)
    assert {"λ", "learning rate", "state", "trial", "FID at rung 2"} <= set(shown)
    assert " ± " in shown["FID at rung 2"]
    report.point_at(marks[0])
    samples, kept = report.all("#tip img") + report.all(f".gallery [data-trial='{BEST}'] img")
    assert samples.get_attribute("src") == kept.get_attribute("src")
    assert samples.get_property("naturalWidth") == 251
    assert report.errors() == []


def test_what_a_stranger_wrote_is_shown_as_he_wrote_it(report: Report):
    report.open()
    report.point_at(report.spots(FAILED)[1])  # in the history: another trial has the same settings
    assert report.tip()["reason"] == EVIL
    assert report.all("#tip script") == []
    label = report.all(f".spot[data-trial='{FAILED}']")[0].get_attribute("aria-label") or ""
    assert label == f"trial 11, search, fail, λ 60, learning rate 0.001, seconds 4, {EVIL}"
    assert report.errors() == []


def test_no_script_but_the_pages_own_runs(report: Report, tmp_path: Path):
    text = report.page.read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(
        text.replace("</main>", "<script>document.title = 'bad'</script><img src=x onerror=alert(1)></main>")
    )
    whole, report.page = report.page, bad
    try:
        report.open()
        assert report.driver.title == "Study one"
        assert any("Content Security Policy" in error for error in report.errors())
        assert report.all("#theme")[0].is_displayed()  # the page's own has run
    finally:
        report.page = whole


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_tap_keeps_a_trial_and_what_is_shown_stays_inside_a_phone(report: Report, theme: str, tmp_path: Path):
    report.open(PHONE, theme)
    for trial in ("search-0", "search-8", BEST):
        for mark in report.spots(trial):
            report.point_at(mark)
            ActionChains(report.driver, duration=0).click().perform()
            assert report.lit() == {trial}
            assert report.tip() == report.row(trial)
            tip, at = report.box(report.all("#tip")[0]), report.box(mark)
            assert 0 <= tip[0] < tip[2] <= PHONE[0]
            assert tip[1] >= at[3] or tip[3] <= at[1]  # it does not cover the trial
            assert report.run("return document.documentElement.scrollWidth") == PHONE[0]
    report.driver.save_screenshot(str(screenshots(tmp_path) / f"report-phone-{theme}.png"))
    ActionChains(report.driver, duration=0).move_to_element(report.all("h1")[0]).perform()
    assert report.lit() == {BEST}
    report.point_at(report.all("h1")[0])
    ActionChains(report.driver, duration=0).click().perform()
    assert report.lit() == set()
    assert report.errors() == []


def test_keys_reach_every_trial_by_one_stop_a_figure(report: Report):
    report.open()
    assert len(report.all(".spot[tabindex='0']")) == FIGURES
    report.run("document.querySelector('.hint').scrollIntoView()")
    report.run("const it = document.querySelector('.hint'); it.tabIndex = 0; it.focus()")
    report.press(Keys.TAB)
    assert report.lit() == {"search-0"}
    for key, trial in (
        (Keys.ARROW_RIGHT, "search-1"),
        (Keys.END, "search-12"),
        (Keys.HOME, "search-0"),
        (Keys.ARROW_LEFT, "search-0"),
    ):
        report.press(key)
        assert report.lit() == {trial}
        assert report.tip() == report.row(trial)
    report.press(Keys.ENTER)
    report.press(Keys.TAB)  # to the next figure
    assert report.lit() == {"search-0"}
    assert report.run("return document.activeElement.closest('svg').getAttribute('aria-label')") == "digits_s: history"
    report.press(Keys.ESCAPE)
    assert report.lit() == set()


def test_a_row_that_is_pointed_at_is_marked_in_the_figures(report: Report):
    report.open()
    report.point_at(report.all("table.trials tr[data-trial='search-4']")[0])
    assert report.lit() == {"search-4"}
    assert len(report.all(".spot.lit")) == FIGURES
    report.point_at(report.all("table.trials tr[data-trial='control-0']")[0])
    assert report.all(".spot.lit") == []


def test_what_covers_something_or_is_too_wide_would_be_seen(report: Report):
    report.open()
    report.run("""
      const text = document.querySelector("svg text");
      text.after(text.cloneNode(true));
      document.querySelector(".note").append(Object.assign(document.createElement("img"), { width: 2000 }));
      document.querySelector(".note img").style.maxWidth = "none";
    """)
    assert len(report.run(OVERLAPS)) == 1
    assert len(report.run(OUTSIDE, False)) == 1


@pytest.mark.parametrize(("size", "theme", "media"), [
    (DESK, "light", "screen"), (DESK, "dark", "screen"), (PHONE, "light", "screen"), (PHONE, "dark", "screen"),
    (PAPER, "dark", "print"),
])  # fmt: skip
def test_nothing_covers_anything_or_is_cut_off(
    report: Report, size: tuple[int, int], theme: str, media: str, tmp_path: Path
):
    report.open(size, theme, media)
    assert report.run(OVERLAPS) == []
    assert report.run(OUTSIDE, media == "print") == []
    assert report.run("return document.documentElement.scrollWidth") <= size[0]
    shown = report.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    name = f"report-{size[0]}-{theme if media == 'screen' else media}.png"
    (screenshots(tmp_path) / name).write_bytes(base64.b64decode(shown["data"]))
    assert report.errors() == []


def test_before_and_after_lie_side_by_side_on_a_desk_and_stacked_on_a_phone(report: Report):
    for size, side_by_side in ((DESK, True), (PHONE, False)):
        report.open(size)
        pictures = report.all(".models img")
        boxes = [report.box(picture) for picture in pictures]
        assert len(boxes) == 4
        assert len({round(top) for _, top, *_ in boxes}) == (1 if side_by_side else 4)
        assert len({round(left) for left, *_ in boxes}) == (4 if side_by_side else 1)
        assert {picture.value_of_css_property("image-rendering") for picture in pictures} == {"pixelated"}


def test_on_a_phone_wide_tables_scroll_and_their_first_column_stays(report: Report):
    report.open(PHONE)
    boxes = [
        box
        for box in report.all(".scroll")
        if report.run("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    ]
    assert len(boxes) >= 3
    for box in boxes:
        report.run("arguments[0].scrollLeft = 150", box)
        first, second = box.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")[:2]
        assert report.box(first)[0] == pytest.approx(report.box(box)[0], abs=1)
        assert report.box(second)[0] < report.box(first)[2]  # which has slid below the first


def test_without_scripts_the_page_is_complete(report: Report):
    report.open(scripts=False)
    try:
        assert report.all("#tip") == []
        assert report.all(".hint")[0].is_displayed() is False
        titles = report.all(".spot title")
        assert len(titles) == len(report.all(".spot")) > 40
        told = report.run("return arguments[0].textContent", report.all(f".spot[data-trial='{BEST}'] title")[0])
        row = report.row(BEST)
        assert told == "trial 3, search, complete, " + ", ".join(f"{head} {row[head]}" for head in list(row)[3:])
        assert len(report.all("table.trials tbody tr")) == 14
        report.all(".gallery summary")[0].click()
        assert all(picture.is_displayed() for picture in report.all(".gallery img"))
        assert len(report.all(".gallery img")) == 12
        assert report.all("#theme")[0].is_displayed() is False
    finally:
        report.open()


def test_a_click_sorts_a_table_by_numbers_and_another_the_other_way(report: Report):
    report.open()
    head = report.all("table.trials th button")[6]
    orders = []
    for _ in range(2):
        head.click()
        orders.append([cell.get_attribute("data-value") for cell in report.all("table.trials td:nth-child(7)")])
    up, down = ([value for value in order if value] for order in orders)
    assert len(up) > 10
    assert up == sorted(up, key=float)
    assert down == up[::-1]
    assert orders[0][len(up) :] == orders[1][len(up) :] == ["", "", ""]  # what has no score stays at the end


def test_the_button_changes_the_theme(report: Report):
    report.open()
    button = report.all("#theme")[0]
    assert button.text == "dark"
    button.click()
    assert report.run("return getComputedStyle(document.body).colorScheme") == "dark"
    assert button.text == "light"
    button.click()
    assert button.text == "dark"
    report.run("localStorage.clear()")
