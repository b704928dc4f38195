import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cca_ray import report
from cca_ray.contracts import FID, Difference, Edge, MetricInfo, MlflowNames, ModelScore, SizeSummary, StudySummary
from cca_ray.reporting.asked import Asked, Named, write_asked
from cca_ray.reporting.results import picture_of, read_study
from cca_ray.reporting.summary import TITLES, picture, report_at_end, table, write_summary
from cca_ray.reporting.text import closing, warnings
from cca_ray.search.mlflow_pages import experiment_name
from cca_ray.tracking.tracker import Tracker
from cca_ray.verdict import verdict
from tests.commands import invoke
from tests.studies import EVIL, make_study, scored, summary_of

EXPERIMENT = experiment_name("llamagen", "digits")
SIZE = summary_of(trials=14, seconds=72.0)


def test_the_table_has_a_row_a_size():
    lines = table([SIZE, summary_of("digits_medium")]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert (
        "| 18.00 ± 0.40 (s = 1.5) | 23.70 ± 0.30 | 17.10 ± 0.21 | ✓ better, 0.95 × | ✓ better, 0.72 × | 4.54 | 0.0098 |"
    ) in lines[2]
    guided = table([SIZE.model_copy(update={"models": {**SIZE.models, "tuned_guided": scored(15.5, 0.25)}})])
    assert "| CCA and guidance |" in guided
    assert "| 15.50 ± 0.25 " in guided


def test_on_a_narrow_terminal_the_table_has_a_column_a_size():
    sizes = [summary_of(f"digits_{name}") for name in "sml"]
    wide, narrow, narrower = (table(sizes, width).splitlines() for width in (200, 95, 60))
    assert wide == table(sizes).splitlines()
    assert narrow[0].split() == ["|", "size", "|", "digits_s", "|", "digits_m", "|", "digits_l", "|"]
    assert narrow[6].split(" | ")[1].strip() == "17.10 ± 0.21"
    assert [line.count("digits") for line in narrower if "digits" in line] == [1, 1, 1]
    assert max(map(len, narrower)) <= 60


def test_the_closing_sentence_says_what_cannot_be_told_apart():
    said = closing(summary_of(fid=17.8, trials=14, seconds=72.0))
    assert said.startswith(
        "digits_s: ≈ equal within noise to the guided base (0.99 × 18.00); ✓ better than the control"
    )
    assert "won, trial 3: FID 17.80 ± 0.21 without guidance, at half the sampling cost" in said
    assert said.endswith("It took 14 trials, 1.2 minutes and 0.05 GPU-hours (A40 0.04, H100 0.01).")
    edge = Edge(of="guidance_scale", value=9, low=1.5, high=9, end="high", setting="score.widen_guidance=6")
    at_an_end = closing(summary_of(edges=(edge,)))
    assert "GPU-hours (A40 0.04, H100 0.01). The base's guidance scale, 9, lies at the upper end" in at_an_end
    assert at_an_end.endswith("continue with --set score.widen_guidance=6.")


def test_what_is_told_is_told_of_the_objective_and_the_metric():
    kid = MetricInfo(name="kid", label="KID", lower_is_better=True)
    of_kid = {
        role: ModelScore(values={"kid": m.values["fid"] / 100}, std={"kid": 0.01}) for role, m in SIZE.models.items()
    }
    dpo = SIZE.model_copy(
        update={"objective": "dpo", "objective_label": "DPO", "metrics": (kid,), "models": of_kid, "searched": ("kid",)}
    )
    assert "(0.95 × 0.18); " in verdict(dpo)
    assert verdict(dpo).endswith("KID 0.17 after DPO, sampled without guidance at half the cost")
    assert "| after DPO   |" in table([dpo])
    assert "| after tuning " in table([dpo, SIZE.model_copy(update={"metrics": (kid,), "models": of_kid})])
    assert "≈ equal within noise to the guided base (0.95 × 0.18)" in closing(dpo)
    assert "won, trial 3: KID 0.17 ± 0.01 without guidance" in closing(dpo)


def test_the_summary_is_json(tmp_path: Path):
    def sizes(path: Path) -> tuple[SizeSummary, ...]:
        return StudySummary.model_validate_json(path.read_text()).sizes

    assert sizes(write_summary(tmp_path, [SIZE])) == (SIZE,)
    assert json.loads((tmp_path / "summary.json").read_text())["schema_version"] == 2
    other, changed = summary_of("digits_m", folder=tmp_path), summary_of(fid=1.0)
    write_summary(tmp_path, [SIZE, other])
    assert sizes(write_summary(tmp_path, [changed])) == (changed, other)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_picture_shows_all_four_models(tmp_path: Path):
    images = {role: np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), dtype=np.uint8) for role in TITLES}
    with Image.open(picture(tmp_path / "samples.png", SIZE, images)) as image:
        assert image.width > 1000
        assert len(image.convert("L").getcolors() or []) > 100
    for role in TITLES:
        with Image.open(tmp_path / picture_of(role)) as image:
            assert image.size == (251, 126)
            np.testing.assert_array_equal(np.asarray(image)[1:25:3, 1:25:3], images[role][0])


class Page(HTMLParser):
    """What a browser would find: tags, what it would load, the text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.loaded += re.findall(r"url\(([^)]*)\)|@import ([^;]*)", self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loads = ("src", "srcset", "href", "xlink:href", "data", "action", "poster")
        self.loaded += [str(value) for name, value in attrs if name in loads]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies under different protocols, one of them with a size that has not finished."""
    storage = tmp_path_factory.mktemp("runs")
    make_study(storage / "one")
    make_study(storage / "one", "digits_m", completed=3, finished=False)
    make_study(storage / "two", protocol="other")
    return storage


@pytest.fixture(scope="module")
def page(storage: Path) -> Page:
    return Page(report.write_report([read_study(storage, "one")], storage / "one" / "report"))


def test_every_trial_is_in_the_page_and_in_the_csv(storage: Path, page: Page):
    trials = [t for size in read_study(storage, "one").sizes for t in size.trials]
    with (storage / "one" / "report" / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trials) == 21
    for row, trial in zip(rows, trials, strict=True):
        assert (row["arm"], row["trial"], row["state"]) == (trial.arm, str(trial.number), trial.state)
    scored = [(row, trial) for row, trial in zip(rows, trials, strict=True) if trial.rungs]
    assert len(scored) == 19  # all but those that failed at once
    for row, trial in scored:
        assert f">{trial.last(FID):.2f} ± {trial.error(FID):.2f}<" in page.source
        assert float(row[f"rung_{len(trial.rungs)}_fid"]) == trial.last(FID)


def test_the_page_says_who_won_by_how_much_and_how_to_sample(storage: Path, page: Page):
    (size,) = read_study(storage, "one").summaries
    gain = size.value("tuned") / size.value("guided")
    assert f"✓ better than the guided base ({gain:.2f} × 18.00)" in page.text
    assert "one training seed; --replicates 2 adds training noise" in page.text
    assert 'class="tile better"' in page.source
    assert f"FID {size.value('tuned'):.2f} ± 0.20" in page.text
    assert "tied with 1 other finalist" in page.text
    assert (
        f"cca_ray.sample digits_s --checkpoint {storage}/one/digits_s/winner.pt --storage {storage} --out grid.png"
        in page.text
    )
    assert "0.05 GPU-hours (A40 0.04, H100 0.01)" in page.text
    assert "with guidance two, one" in page.text


def test_the_command_that_samples_names_what_the_study_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else it samples by other settings, or from another base, which it makes first."""
    folder = make_study(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    write_asked(folder, {"digits_s": Named(space="/my bases/digits_s.yaml", settings=("score.top_k=9", "base.x=a b"))})
    page = Page(report.write_report([read_study(folder.parent, "one")], folder / "report"))
    command = (
        "cca_ray.sample '/my bases/digits_s.yaml' --checkpoint runs/one/digits_s/winner.pt "
        "--set score.top_k=9 --set 'base.x=a b' --out grid.png"
    )
    assert command in page.text


def test_a_winner_at_an_end_and_a_size_that_is_worse_are_loud_and_finalists_have_both_their_scores(tmp_path: Path):
    folder = make_study(tmp_path / "bad")
    (size,) = read_study(tmp_path, "bad").summaries
    edge = Edge(of="learning_rate", value=1.1e-3, low=1e-3, high=2e-2, end="low", setting="search.space.a.low=1e-4")
    finalists = tuple(f.model_copy(update={"selection": scored(15.125, 0.3)}) for f in size.finalists)
    worse = Difference(value=2.0, low=1.0, high=3.0, at_least_as_good=0.0)
    changes = {"edges": (edge,), "finalists": finalists, "differences": {"guided": worse}}
    write_summary(folder, [size.model_copy(update=changes)])
    page = Page(report.write_report([read_study(tmp_path, "bad")], tmp_path / "out"))
    assert "bad, digits_s: the learning rate, 0.0011, lies at the lower end of what was searched" in page.text
    assert 'class="tile worse"' in page.source
    assert '<p class="worse">✗ WORSE than the guided base' in page.source
    assert page.text.count("FID at selection") == 2  # the column, and what it is
    assert ">15.12 ± 0.30<" in page.source
    assert ">FID reported<" in page.source
    assert ">FID at the last rung<" in page.source


def test_what_failed_is_told_with_its_reason_and_escaped(page: Page):
    assert "<script>alert" not in page.source
    assert page.tags.count("script") == 1
    assert page.text.count(f"1 failed: {EVIL} (search #11)") == 1
    assert "1 stopped: not among the best at a rung (search #10)" in page.text


def test_the_page_needs_nothing_beside_it_and_no_network(page: Page):
    assert page.loaded
    assert [what for what in page.loaded if not re.match(r"data:|#", "".join(what).strip("'\""))] == []
    assert {"link", "iframe", "object", "embed"} & set(page.tags) == {"link"}  # an empty icon, or browsers ask for one


def test_the_page_is_for_light_and_dark_paper_and_phones(page: Page):
    assert "prefers-color-scheme: dark" in page.source
    assert ':root[data-theme="dark"]' in page.source
    assert "@media print" in page.source
    assert 'name="viewport"' in page.source
    assert page.source.count("--tuned: ") == 3


def test_a_size_that_has_not_finished_says_so_and_shows_what_there_is(page: Page):
    assert "one, digits_m: not finished; 3 completed, 1 stopped at a rung, 1 failed, 1 not finished." in page.text
    assert "not on fresh noise" in page.text


def test_a_size_that_never_began_is_named_where_the_outcome_is_told(storage: Path, tmp_path: Path):
    two = replace(read_study(storage, "two"), asked=Asked(sizes=("digits_s", "digits_m")))
    text = Page(report.write_report([two], tmp_path / "two")).text
    assert "1 of its sizes has not finished: digits_m." in text
    assert "two, digits_m: not begun." in text
    one = replace(read_study(storage, "one"), asked=Asked(sizes=("digits_s", "digits_m", "digits_var")))
    text = Page(report.write_report([one], tmp_path / "one")).text
    assert "2 of its sizes have not finished: digits_m, digits_var." in text
    assert text.count("not begun") == 1


def test_figures_lie_beside_the_page_as_svg_and_png(storage: Path, page: Page):
    folder = storage / "one" / "report"
    drawn = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.svg")}
    of_size = ("history", "landscape", "parallel", "rungs", "trade_off")
    assert drawn == {
        "sizes", "llamagen-fid", "llamagen-inception_score",
        *(f"{size}/{name}" for size in ("digits_s", "digits_m") for name in of_size),
    }  # fmt: skip
    assert page.tags.count("svg") == len(drawn) - 1  # the page has the two halves of `sizes`
    for name in drawn:
        assert "prefers-color-scheme:dark" in (folder / f"{name}.svg").read_text()
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 600


def test_a_study_with_nothing_yet_has_a_report(tmp_path: Path):
    make_study(tmp_path / "new", completed=0, finished=False)
    study = read_study(tmp_path, "new")
    text = Page(report.write_report([study], tmp_path / "out")).text
    assert "No trial of the search has been completed." in text


def test_two_studies_are_side_by_side_and_a_mismatch_of_protocols_is_said(storage: Path, capsys):
    outcome = invoke(report.main, ["one", "two", "--storage", str(storage)], capsys)
    assert outcome.code == 0
    path = storage / "one" / "report-with-two" / "report.html"
    assert outcome.out == f"{path}\n"
    text = Page(path).text
    assert "scores of different protocols are not compared" in text
    assert "0123456789: one/digits_s, one/digits_m; other: two/digits_s" in text
    assert "compare along a row, not down a column" in text


def test_studies_of_one_protocol_have_no_warning(storage: Path, tmp_path: Path):
    make_study(tmp_path / "three")
    three, one, two = (read_study(at, name) for at, name in ((tmp_path, "three"), (storage, "one"), (storage, "two")))
    assert not any("different protocols" in line for line in warnings([three, one]))
    assert any("different protocols" in line for line in warnings([three, two]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'NAME...'"),
        (["three hundred"], "no study here; there are: one, two"),
        (["one", "one"], "a study is named twice"),
        (["one", "--storage", "nowhere"], "nowhere: no such folder"),
        (["one", "--out", "FILE"], "File exists"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, storage: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    where = [] if "--storage" in arguments else ["--storage", str(storage)]
    outcome = invoke(report.main, [*arguments, *where], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_the_end_of_a_study_makes_the_report_and_logs_it(storage: Path, tmp_path: Path):
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", EXPERIMENT, tmp_path / "artifacts")
    tracker.run("two/digits_s/id", "digits_s")
    size = summary_of(mlflow=MlflowNames(experiment=EXPERIMENT, key="two/digits_s/id"))
    path, trouble = report_at_end(storage / "two", [size], {EXPERIMENT: tracker})
    assert (path, trouble) == (storage / "two" / "report" / "report.html", "")
    assert tracker.flush(60)
    logged = {file.path for file in tracker.client.list_artifacts(tracker.run_id("two/digits_s/id"), "report")}
    tracker.close(10)
    assert {f"report/{name}" for name in ("report.html", "landscape.png", "history.png", "trade_off.png")} <= logged


def test_a_report_that_fails_leaves_the_study_and_says_how_to_make_it(storage: Path, tmp_path: Path, capsys):
    shutil.copytree(storage / "two", tmp_path / "two", ignore=shutil.ignore_patterns("report"))
    (tmp_path / "two" / "report").write_text("a file in the way")
    page, line = report_at_end(tmp_path / "two", [], {})
    assert page is None
    assert line.startswith("the study has no report (")
    assert str(tmp_path / "two" / "report") in line
    (tmp_path / "two" / "report").unlink()
    command = line.partition("make it with ")[2]
    assert command == f"cca-ray report two --storage {tmp_path}"
    assert invoke(report.main, command.split()[2:], capsys).code == 0
