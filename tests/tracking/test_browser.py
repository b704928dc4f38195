"""A finished study on a real MLflow server, as people see it: in a real browser.

Screenshots are kept in $CCA_RAY_SCREENSHOTS, if it is set.
"""

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from cca_ray.search.mlflow_pages import CHAMPION, ended_filter, experiment_of, link_to_trials, registered_name
from cca_ray.space_file import parse
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import BaseFiles, with_files
from cca_ray.verdict import verdict
from tests.browser import CHROMIUM, DRIVER, MISSING, Browser
from tests.conftest import tiny_space
from tests.real_studies import Shown, finish
from tests.tracking.servers import Server, empty_mlflow

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, base_files: BaseFiles, ray_here: None
) -> Iterator[tuple[Shown, Browser]]:
    """A study of three trials and its control on a server, and a browser on it."""
    folder = tmp_path_factory.mktemp("browser")
    server = Server(folder)
    empty_mlflow(folder / "mlflow.db")
    server.start()
    content = tiny_space()
    content["search"]["max_concurrent"] = 1
    config = with_files(parse(content, "tiny", "tiny.yaml"), base_files)
    tracker = Tracker(server.url, experiment_of(config), journal=folder / "journal")
    browser = Browser(server.url, folder / "screenshots")
    try:
        yield Shown(config, folder / "study", tracker, finish(config, folder / "study", tracker)), browser
    finally:
        browser.driver.quit()
        tracker.close(5)
        server.kill()


def test_the_experiments_page_lists_ours_with_its_description(shown: tuple[Shown, Browser]):
    _, browser = shown
    browser.open("/experiments")
    browser.wait_for("cca_ray llamagen digits", "so that it samples without guidance")
    browser.shoot("experiments")


def test_sorted_by_fid_the_best_run_is_on_top(shown: tuple[Shown, Browser]):
    """By the filter of the size's own note."""
    study, browser = shown
    query = ended_filter(study.summary.mlflow.key)
    best = study.runs(query, "metrics.fid ASC")
    browser.open(f"{study.page}?searchFilter={quote(query)}&orderByKey=metrics.%60fid%60&orderByAsc=true")
    browser.wait_for("Sort: fid", f"{len(best)} matching runs")
    rows = browser.all("a[href*='/runs/']", len(best))
    names = list(dict.fromkeys(row.text for row in rows if "lr=" in row.text))
    assert names == [run.info.run_name for run in best]
    browser.shoot("runs")


def test_the_link_of_the_output_opens_a_table_of_settings_and_scores(shown: tuple[Shown, Browser]):
    study, browser = shown
    best = study.runs(ended_filter(study.summary.mlflow.key), "metrics.fid ASC")
    browser.follow(link_to_trials(study.tracker, study.folder.name))
    browser.wait_for("Sort: fid", f"{len(best)} matching runs", "lambda", "learning_rate", "final/fid", "winner")
    names = list(dict.fromkeys(row.text for row in browser.all("a[href*='/runs/']", len(best)) if "lr=" in row.text))
    assert names == [run.info.run_name for run in best]
    assert "Dataset" not in browser.text().split("Run Name")[1].split(names[0])[0]  # of MLflow's own columns
    browser.shoot("table")


def test_the_other_link_of_the_output_opens_charts_of_the_same_runs(shown: tuple[Shown, Browser]):
    study, browser = shown
    count = len(study.runs(ended_filter(study.summary.mlflow.key)))
    browser.follow(link_to_trials(study.tracker, study.folder.name, charts=True))
    browser.wait_for(f"{count} matching runs", "eval", "train", "final")  # the sections of metrics
    browser.shoot("charts")


def test_the_page_of_a_size_tells_the_verdict(shown: tuple[Shown, Browser]):
    study, browser = shown
    browser.open(f"{study.page}/{study.parent.info.run_id}")
    browser.wait_for(verdict(study.summary), "final/fid_cca", "Logged models")
    browser.shoot("size")
    browser.open(f"{study.page}/{study.parent.info.run_id}/artifacts/report/report.html")
    browser.wait_for("samples.png", "report.html")
    browser.shoot("report-in-mlflow")


def test_a_trial_has_charts_and_a_slider_through_its_samples(shown: tuple[Shown, Browser]):
    """From the base's samples, step 0, to those of the last rung."""
    study, browser = shown
    best = study.runs(ended_filter(study.summary.mlflow.key), "metrics.fid ASC")[0]
    browser.open(f"{study.page}/{best.info.run_id}/model-metrics", height=3200)
    browser.wait_for("fid", "eval", "inception_score", "train", "loss", "reward_accuracy", "samples")
    browser.all(".js-plotly-plot", 5)
    assert browser.all("[role=slider]")[0].get_attribute("aria-valuenow") == "0"
    assert len({browser.picture(step) for step in (0, 5, 10)}) == 3
    browser.shoot("trial")
    browser.open(f"{study.page}/{best.info.run_id}/system-metrics")
    browser.wait_for("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    browser.shoot("system")


def test_the_winner_is_registered_as_champion(shown: tuple[Shown, Browser]):
    study, browser = shown
    browser.open(f"/models/{registered_name(study.config)}")
    browser.wait_for(f"@ {CHAMPION}", "Version 1", "fid", "study")
    browser.shoot("champion")
