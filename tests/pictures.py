"""Makes the pictures of README and docs, all from one finished study with its MLflow database beside it.

python -m tests.pictures runs/digits
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from cca_ray.reporting.results import read_summary
from tests.browser import Browser, chromium
from tests.tracking.test_tracker import Server

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIZE = "digits_m"  # whose samples and pages are shown
WIDTH = 1200  # pixels of a picture of MLflow
HEIGHTS = {"size": (860, 860), "trial": (3200, 2330)}  # of the browser's window, and how much of it is kept
CHARTS = {"size": 0, "trial": 8}
SHOWN = {"size": ("final/fid_cca", "Logged models"), "trial": ("loss", "fid", "samples")}


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
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(study / SIZE / "samples.png", DOCS)
        shoot_report(study / "report" / "report.html", Path(folder))
        shoot_mlflow(study, Path(folder))


if __name__ == "__main__":
    main()
