"""What earlier studies have to teach one that begins: `search.learn_from`. They are only read."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from cca_ray.config import StudyConfig
from cca_ray.errors import ConfigError, first_line, without_secrets
from cca_ray.reporting.results import SizeResults, read_database, read_study, studies_in
from cca_ray.search.arms import space_of
from cca_ray.search.learning import Learnt, LearntSize, Lesson, usable
from cca_ray.search.records import rung_scores
from cca_ray.search.rungs import Mark
from cca_ray.space_file import is_uri
from cca_ray.storage.mirror import exists, pull, reach
from cca_ray.storage.uris import is_copy, local_path, to_uri


@dataclass(frozen=True)
class Taught:
    """`left_out`: of what nothing can be learnt, and why; a line each."""

    lessons: tuple[Lesson, ...]
    left_out: tuple[str, ...]


def lessons_for(config: StudyConfig, folder: Path) -> Taught:
    """Of a size of the study in `folder` that begins. ConfigError if a study is not there, or has nothing to teach."""
    lessons, left_out = list[Lesson](), list[str]()
    for name in config.search.learn_from:
        where = f"{config.name}: search.learn_from: {without_secrets(name)}"
        found, misfits = list[Lesson](), list[str]()
        for size in sizes_of(name, folder, where):
            if why := misfit(config, size):
                misfits.append(f"{size.name} of {name}: {why}")
            else:
                found.append(lesson_of(config, name, size))
        if not found:
            raise ConfigError(
                f"{where}: there is nothing to learn from there: {'; '.join(misfits) or 'no trial has ended'}"
            )
        lessons += found
        left_out += misfits
    return Taught(tuple(lessons), tuple(left_out))


def sizes_of(name: str, folder: Path, where: str) -> tuple[SizeResults, ...]:
    """Those of the study of this name, which is in the same storage, or at this path or URI."""
    is_place = is_uri(name) or "/" in name or name.startswith(("~", "."))
    try:
        source = local_path(name) if is_place else folder.parent / name
        source = source if is_copy(source) else source.resolve()
        if source == folder:
            raise ConfigError("a study cannot learn from itself; name an earlier one")
        reach(source.parent)
        if not exists(source / "study.db"):
            near = get_close_matches(source.name, studies_in(source.parent) if exists(source.parent) else [], 1)
            raise ConfigError(f"{to_uri(source)}: no study here{f'; did you mean {near[0]}?' if near else ''}")
        return read_study(source.parent, source.name).sizes
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None


def misfit(config: StudyConfig, size: SizeResults) -> str:
    """Why nothing can be learnt of it; empty if something can."""
    theirs, metrics = size.settings, config.search.metrics
    if theirs.base.family != config.base.family:
        return f"its family is {theirs.base.family}, not {config.base.family}"
    if theirs.train.objective != config.train.objective:
        return f"its objective is {theirs.train.objective}, not {config.train.objective}"
    if missing := [name for name in config.search.space if name not in theirs.search.space]:
        return f"it did not search {', '.join(missing)}"
    if missing := [name for name in metrics if name not in {metric.name for metric in size.metrics}]:
        return f"it did not measure {', '.join(missing)}"
    if not any(trial.state == TrialState.COMPLETE for trial in usable_of(config, size)):
        return "none of its trials was completed"
    if parameters_of(config, size) is None:
        return "an earlier version began it and did not finish it, so the size of its model is unknown"
    return ""


def parameters_of(config: StudyConfig, size: SizeResults) -> int | None:
    """How many its model has; 0: as many as ours. None if that is not known."""
    return 0 if size.parameters is None and size.settings.base.size == config.base.size else size.parameters


def usable_of(config: StudyConfig, size: SizeResults) -> list[FrozenTrial]:
    space, metrics = space_of(config), config.search.metrics
    return [row.frozen for row in size.of("search") if usable(row.frozen, space, metrics)]


def lesson_of(config: StudyConfig, name: str, size: SizeResults) -> Lesson:
    """Of a size that fits."""
    trials, metrics = usable_of(config, size), config.search.metrics
    if size.summary and size.metric.name == metrics[0]:
        best = size.summary.winner.params
    else:
        completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        best = min(completed, key=lambda trial: Mark.of(rung_scores(trial)[-1], metrics).costs[0]).params
    parameters, rungs = parameters_of(config, size), tuple(rung.at for rung in size.settings.rungs)
    assert parameters is not None
    return Lesson(name, size.name, parameters, rungs, best, trials)


def would_learn(config: StudyConfig, folder: Path, begun: Learnt | None) -> list[str]:
    """What a size of the study in `folder` would say of what it learns, in lines. ConfigError as for `lessons_for`.

    `begun`: what it learnt when it began; None if it has not.
    """
    named = config.search.learn_from
    if begun is not None:
        return [told] if (told := begun.told(named)) else []
    if not named:
        return []
    taught = lessons_for(config, folder)
    learnt = Learnt(named=named, sizes=tuple(map(LearntSize.of, taught.lessons)))
    return [f"learns from {learnt}", *(f"cannot learn from {line}" for line in taught.left_out)]


def check_lessons(configs: Iterable[StudyConfig], folder: Path) -> None:
    """ConfigError if a size of the study in `folder`, which may not be there yet, cannot learn what it should."""
    if not (learners := [config for config in configs if config.search.learn_from]):
        return
    begun = read_database(folder / "study.db") if pull(folder / "study.db") else {}
    for config in learners:
        if config.name not in begun:
            lessons_for(config, folder)
