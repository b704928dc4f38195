"""What earlier studies have to teach: studies in folders, as the search leaves them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from cca_ray import plan, tune
from cca_ray.config import StudyConfig
from cca_ray.errors import ConfigError
from cca_ray.inputs import find_space
from cca_ray.reporting.lessons import check_lessons, lessons_for
from cca_ray.reporting.plan import plan_of
from cca_ray.reporting.results import read_study
from cca_ray.search.arms import Arm, open_arms
from cca_ray.search.records import PARAMETERS
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config
from cca_ray.study import UsedBefore, used_before
from tests.commands import invoke
from tests.search.ledgers import DIGESTS
from tests.studies import make_study


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A storage with a finished study of one size, named `before`."""
    make_study(tmp_path / "runs" / "before")
    return tmp_path / "runs"


def learner(*names: str | Path, space: str = "digits_m", settings: Sequence[str] = ()) -> StudyConfig:
    return load_config(find_space(space), [f"search.learn_from=[{', '.join(map(str, names))}]", *settings])


def begin(config: StudyConfig, folder: Path) -> Arm:
    """The search of a size of the study in this folder, of a model of twice the parameters."""
    folder.mkdir(exist_ok=True)
    lessons = lessons_for(config, folder).lessons if config.search.learn_from else ()
    storage = open_storage(folder / "study.db")
    return open_arms(config, folder.name, storage, DIGESTS, parameters=33280, lessons=lambda: lessons)[1]


def test_a_study_is_found_by_name_path_and_uri(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    best = read_study(runs, "before").sizes[0].summary
    assert best is not None
    for name in ("before", "runs/before", runs / "before", f"file://{runs}/before"):
        taught = lessons_for(learner(name), runs / "new")
        (lesson,) = taught.lessons
        assert (lesson.study, lesson.size, lesson.parameters) == (str(name), "digits_s", 16640)
        assert (lesson.best, lesson.rungs) == (best.winner.params, (0.5, 1.0))
        assert len(lesson.trials) == 11  # ten completed, and one that a rung stopped
        assert taught.left_out == ()


def test_a_study_that_has_not_finished_teaches_what_it_has(runs: Path):
    """An earlier version did not keep how large its model is, unless it is of the same size."""
    make_study(runs / "half", finished=False)
    (lesson,) = lessons_for(learner("half", space="digits_s"), runs / "new").lessons
    assert (lesson.parameters, len(lesson.trials)) == (0, 11)
    best = min(read_study(runs, "half").sizes[0].of("search", "COMPLETE"), key=lambda trial: trial.frozen.value)
    assert lesson.best == best.params
    with pytest.raises(ConfigError, match="digits_s of half: an earlier version began it and did not finish"):
        lessons_for(learner("half"), runs / "new")
    database = f"sqlite:///{runs / 'half' / 'study.db'}"
    optuna.load_study(study_name="half/digits_s/search", storage=database).set_user_attr(PARAMETERS, 500)
    assert lessons_for(learner("half"), runs / "new").lessons[0].parameters == 500


@pytest.mark.parametrize(
    ("space", "settings", "why"),
    [
        ("digits_var", [], "its family is llamagen, not var"),
        ("digits_m", ["train.objective=dpo", "search.space={beta: {low: 0.01, high: 1}}", "search.first_points=[]"],
         "its objective is cca, not dpo"),
        ("digits_m", ["search.space.epochs={low: 10, high: 40}", "search.space.beta={low: 0.01, high: 1}",
                      "search.first_points=[]"], "it did not search epochs, beta"),
        ("digits_m", ["score.metrics=[fid, kid]", "search.metric=kid"], "it did not measure kid"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_teaches_nothing(space: str, settings: list[str], why: str, runs: Path):
    with pytest.raises(ConfigError) as refused:
        lessons_for(learner("before", space=space, settings=settings), runs / "new")
    assert str(refused.value) == (
        f"{space}: search.learn_from: before: there is nothing to learn from there: digits_s of before: {why}"
    )


def test_of_a_study_with_several_sizes_those_that_fit_teach(runs: Path):
    """The other is named; so is one without a completed trial."""
    make_study(runs / "before", "digits_var", finished=False)
    make_study(runs / "begun", completed=0, finished=False)
    taught = lessons_for(learner("before"), runs / "new")
    assert [lesson.size for lesson in taught.lessons] == ["digits_s"]
    assert taught.left_out == ("digits_var of before: its family is var, not llamagen",)
    with pytest.raises(ConfigError, match="digits_s of begun: none of its trials was completed"):
        lessons_for(learner("before", "begun"), runs / "new")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("befor", "{runs}/befor: no study here; did you mean before?"),
        ("nothing/here", "nothing/here: no study here"),
        ("s3://user:secret@bucket/before", "the URI has credentials"),
        ("new", "a study cannot learn from itself; name an earlier one"),
        ("damaged", "study.db: not a readable study"),
        ("[]", "search.learn_from.0: "),
        ("'', a", "search.learn_from: one is empty"),
        ("a, a", "search.learn_from: names a twice"),
    ],
)
@pytest.mark.parametrize("verb", ["tune", "dry run", "plan"])
def test_what_cannot_be_learnt_is_one_line_before_anything_is_written(
    verb: str, name: str, said: str, runs: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs)
    (runs / "damaged").mkdir()
    (runs / "damaged" / "study.db").write_text("nothing")
    there = sorted(runs.rglob("*"))
    main, more = (plan.main, []) if verb == "plan" else (tune.main, ["--dry-run"] if verb == "dry run" else [])
    arguments = ["digits_m", "--name=new", f"--storage={runs}", f"--set=search.learn_from=[{name}]", *more]
    outcome = invoke(main, arguments, capsys)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert said.format(runs=runs) in outcome.err
    assert "secret" not in outcome.err
    assert sorted(runs.rglob("*")) == there


def test_the_plan_says_what_would_be_learnt_and_then_what_was(runs: Path):
    make_study(runs / "before", "digits_var", finished=False)
    config = learner("before")

    def told(config: StudyConfig) -> list[str]:
        lines = plan_of([config], runs, "new", [])[1:]
        return [line.strip() for line in lines if "learn" in line or "not from" in line]

    assert told(config) == [
        "learns from digits_s of before (11 trials)",
        "cannot learn from digits_var of before: its family is var, not llamagen",
    ]
    begin(config, runs / "new")
    shutil.rmtree(runs / "before")
    assert told(config) == ["learnt from digits_s of before (11 trials)"]
    (line,) = told(learner("other"))
    assert line.startswith("search.learn_from is other now, but this search began with what it learnt from digits_s of")


def test_a_search_that_has_begun_needs_no_earlier_study(runs: Path):
    config, folder = learner("before"), runs / "new"
    check_lessons([config], folder)
    arm = begin(config, folder)
    shutil.rmtree(runs / "before")
    check_lessons([config], folder)
    again = open_arms(config, "new", open_storage(folder / "study.db"), DIGESTS)[1]
    before, now = (one.question([], 0).earlier[0].trials for one in (arm, again))
    assert [trial.params for trial in now] == [trial.params for trial in before]
    assert len(now) == 11
    with pytest.raises(ConfigError, match="before: no study here"):
        check_lessons([config, learner("before", space="digits_s")], folder)


def test_what_was_learnt_is_no_part_of_the_study_itself(runs: Path):
    """Neither a size nor an arm of it, nor what it used."""
    begin(learner("before"), runs / "new")
    (size,) = read_study(runs, "new").sizes
    assert size.name == "digits_m"
    assert {trial.arm for trial in size.trials} == {"search", "control"}
    assert {trial.state for trial in size.trials} == {"WAITING"}
    assert (size.parameters, str(size.learnt)) == (33280, "digits_s of before (11 trials)")
    assert used_before(runs / "new" / "study.db", 0.0) == UsedBefore(0.0, {"digits_m": 0.0})
    (lesson,) = lessons_for(learner("before", space="digits_s"), runs / "other").lessons
    assert lesson.size == "digits_s"
