"""Makes the pictures of README and docs, all from one finished study with its MLflow database beside it.

python -m tests.pictures runs/bases-of-default/avx2-0/seed0

It is one of those that README's table is made of, as `benchmarks/default.py` leaves them. `docs/pictures.json` says
which, and what was made of it, so that a test finds pictures and figures of different studies.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from benchmarks.default import ROWS, Row, read_rows
from cca_ray.contracts import Contract, SizeSummary
from cca_ray.reporting.results import read_summary
from tests.browser import Browser, chromium
from tests.tracking.servers import Server

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE_OF = DOCS / "pictures.json"
SIZE = "digits_m"  # whose samples and pages are shown
WIDTH = 1200  # pixels of a picture of MLflow
HEIGHTS = {"size": (1010, 860), "trial": (3200, 2330)}  # of the browser's window, and how much of the page is kept
CHARTS = {"size": 0, "trial": 8}
SHOWN = {"size": ("final/fid_cca", "Logged models"), "trial": ("loss", "fid", "samples")}


class MadeOf(Contract):
    """The study that the pictures are of, by what names its rows in README's table; and the SHA-256 of each file."""

    arithmetic: str
    base: int
    seed: int
    commit: str
    pictures: dict[str, str]


def digests() -> dict[str, str]:
    """Of all pictures that there are."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(DOCS.glob("*.png"))}


def row_of(sizes: Sequence[SizeSummary], rows: Sequence[Row]) -> Row | None:
    """The first of the rows that this study has left, if it has left one for each of its sizes."""
    measured = {(row.size, row.fid_base, row.fid_guided, row.fid_control, row.fid_cca): row for row in rows}
    found = list[Row]()
    for size in sizes:
        own = Row.of(size, "", 0, 0)
        row = measured.get((own.size, own.fid_base, own.fid_guided, own.fid_control, own.fid_cca))
        if row is None:
            return None
        found.append(row)
    return found[0] if len({(row.arithmetic, row.base, row.seed, row.commit) for row in found}) == 1 else None


def shoot_report(page: Path, folder: Path) -> None:
    """Light on a desk, dark on a phone."""
    for theme, width, height, ratio in (("light", 1280, 1730, 1), ("dark", 400, 650, 2)):
        driver = chromium(folder / theme)
        try:
            driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            )
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False},
            )
            driver.get(page.as_uri())
            driver.save_screenshot(str(DOCS / f"report-{theme}.png"))
        finally:
            driver.quit()


def shoot_mlflow(study: Path, folder: Path) -> None:
    """The page of the size, and that of its winner's trial."""
    size = next(size for size in read_summary(study / "summary.json").sizes if size.size == SIZE)
    shutil.copy(study.parent / "mlflow.db", folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    ids = [client.get_experiment_by_name(size.mlflow.experiment).experiment_id]
    (winner,) = client.search_runs(
        ids, f"tags.study = '{study.name}' and tags.size = '{size.size}' and tags.winner = 'true'"
    )
    pages = {"size": size.mlflow.run_id, "trial": f"{winner.info.run_id}/model-metrics"}
    server = Server(folder)
    server.start()
    browser = Browser(server.url, folder)
    try:
        for name, page in pages.items():
            browser.open(f"/experiments/{ids[0]}/runs/{page}", height=HEIGHTS[name][0])
            browser.wait_for(*SHOWN[name])
            browser.all(".js-plotly-plot", CHARTS[name])
            time.sleep(5)  # lines are drawn after the charts' frames
            browser.shoot(name)
            with Image.open(browser.folder / f"{name}.png") as image:
                kept = image.convert("RGB").crop((0, 0, image.width, HEIGHTS[name][1]))
                smaller = kept.resize((WIDTH, round(kept.height * WIDTH / kept.width)))
                smaller.quantize(128).save(DOCS / f"mlflow-{name}.png")
    finally:
        browser.driver.quit()
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="its folder")
    study = parser.parse_args().study.resolve()
    row = row_of(read_summary(study / "summary.json").sizes, read_rows(ROWS))
    if row is None:
        sys.exit(f"error: {study}: no study of {ROWS}; take one of those that `python benchmarks/default.py` has left")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(study / SIZE / "samples.png", DOCS)
        shoot_report(study / "report" / "report.html", Path(folder))
        shoot_mlflow(study, Path(folder))
    made = MadeOf(arithmetic=row.arithmetic, base=row.base, seed=row.seed, commit=row.commit, pictures=digests())
    MADE_OF.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
