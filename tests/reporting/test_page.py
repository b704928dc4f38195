"""The report in a real browser: complete in both themes, on a desk and on a phone, without a network."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cca_ray.report import write_report
from cca_ray.reporting.results import read_study
from tests.browser import CHROMIUM
from tests.studies import make_study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

THEMES = {"dark": 0, "light": 1}  # Blink's numbers
HEIGHT = 3000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    make_study(storage / "one")
    make_study(storage / "one", "digits_m", completed=3, finished=False)
    return write_report([read_study(storage, "one")], storage / "one" / "report")


def browse(
    page: Path, folder: Path, theme: str, *arguments: str, width: int = 1280, height: int = 3000
) -> tuple[str, str]:
    """What a headless Chromium prints of the page, and what it says of errors. It can reach nothing."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--v=0", "--proxy-server=127.0.0.1:9", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000",
        f"--blink-settings=preferredColorScheme={THEMES[theme]}", f"--window-size={width},{HEIGHT}", *arguments,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_errors_in_a_page_would_be_seen(tmp_path: Path):
    page = tmp_path / "bad.html"
    page.write_text("<script>nonsense()</script><img src='https://example.invalid/a.png'>")
    _, errors = browse(page, tmp_path, "light", "--dump-dom")
    assert "nonsense is not defined" in errors


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_is_complete_and_without_errors(page: Path, tmp_path: Path, theme: str):
    dom, errors = browse(page, tmp_path, theme, "--dump-dom")
    assert errors == ""
    assert dom.count("<svg") == 12  # two by size, five of either size
    assert dom.count('class="scroll long"') == 2
    assert dom.rstrip().endswith("</html>")
    assert len(re.findall("<th[^>]*><button>", dom)) > 20  # the script has run: tables sort
    other = {"dark": "light", "light": "dark"}[theme]
    assert re.search(f'<button id="theme"[^>]*>{other}</button>', dom)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_has_the_colours_of_its_theme(page: Path, tmp_path: Path, theme: str, width: int):
    browse(page, tmp_path, theme, f"--screenshot={tmp_path / 'page.png'}", width=width)
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (HEIGHT, width)
    paper = np.median(pixels)
    assert paper > 250 if theme == "light" else paper < 30
    drawn = np.abs(pixels.astype(int) - paper) > 100  # text and figures, from top to bottom
    assert all(band.any() for band in np.array_split(drawn, 10))
