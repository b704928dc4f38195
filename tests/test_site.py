"""The site of docs/conf.py: builds without a warning, with every page and the whole Python API."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import cca_ray

ROOT = Path(__file__).resolve().parents[1]


class Links(HTMLParser):
    """Where the links of a page lead, and what can be led to."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {anchor for anchor in [given.get("id")] if anchor}
        self.links += [link for link in (given.get("href"), given.get("src")) if link]


def command() -> list[str]:
    """As CONTRIBUTING.md says it."""
    found = re.search(r"^python (-m sphinx .*)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1].split()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_has_every_page_and_no_dead_link(tmp_path: Path):
    *arguments, target = command()
    assert target.startswith("build/")  # which git ignores
    subprocess.run([sys.executable, *arguments, tmp_path], cwd=ROOT, check=True)
    pages = {page: Links(page) for page in tmp_path.rglob("*.html")}
    for page in ROOT.glob("docs/*.md"):
        assert tmp_path / "docs" / f"{page.stem}.html" in pages
    assert (tmp_path / "index.html").read_text() == (tmp_path / "README.html").read_text()
    for page, found in pages.items():
        for link in found.links:
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target_page = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            assert target_page.exists(), f"{page.name} -> {link}"
            assert not anchor or target_page not in pages or unquote(anchor) in pages[target_page].anchors, link
    api = (tmp_path / "docs" / "api.html").read_text(encoding="utf-8")
    for name in set(cca_ray.__all__) - {"__version__"}:
        assert re.search(rf'id="cca_ray\.[\w.]*\b{name}"', api), name


def test_the_site_names_every_page_of_the_docs():
    conf = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert [page.stem for page in ROOT.glob("docs/*.md") if f'"docs/{page.stem}"' not in conf] == []
