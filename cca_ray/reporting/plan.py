"""What a study would do, before it does it: trials, time, disk; new, or continued from where."""

from collections.abc import Sequence
from pathlib import Path

from cca_ray.config import StudyConfig
from cca_ray.data.labelled_images import digits
from cca_ray.models.family import family_of
from cca_ray.models.official import parameters
from cca_ray.reporting.results import SizeResults, StudyResults, read_study, studies_in
from cca_ray.search.budget import final_seconds
from cca_ray.search.records import ENDED_NAMES
from cca_ray.storage.uris import local_path, to_uri
from cca_ray.training.small_networks import blank_model, blank_tokenizer


def plan_of(
    configs: Sequence[StudyConfig], storage: Path, name: str, minutes: float | None, hours: float | None
) -> list[str]:
    """Lines for people. `minutes`, `hours`: the budget."""
    known = {study.name: study for study in known_studies(storage, name)}
    study = known.get(name)
    ended = sum(t.state in ENDED_NAMES for size in study.sizes for t in size.trials) if study else 0
    state = f"continued; {ended} trials have ended" if study else "new"
    lines = [f"study {name} in {to_uri(storage / name)}: {state}"]
    for config in configs:
        before = size_named(config.name, [study] if study else [])
        like = before or size_named(config.name, list(known.values()))
        lines.append(f"{config.name}: {trials(config)}")
        lines += [f"  time: {time(config, before, like)}", f"  disk: {disk(config)}"]
    given = " and ".join(f"{value:g} {unit}" for value, unit in ((minutes, "minutes"), (hours, "GPU-hours")) if value)
    if given:
        lines.append(f"budget: {given} for all sizes together; no trial begins that would exceed it")
    return lines


def known_studies(storage: Path, name: str) -> list[StudyResults]:
    """Those that can be read, that of this name first: the others tell how long a trial takes."""
    try:
        names = sorted(studies_in(storage), key=lambda other: other != name)
    except (ValueError, OSError):
        return []
    found = []
    for each in names:
        try:
            found.append(read_study(storage, each))
        except (ValueError, OSError):
            continue
    return found


def size_named(name: str, studies: Sequence[StudyResults]) -> SizeResults | None:
    """The first of this name with a trial that has ended."""
    sizes = [size for study in studies for size in study.sizes if size.name == name]
    return next((size for size in sizes if any(t.state in ENDED_NAMES for t in size.trials)), None)


def trials(config: StudyConfig) -> str:
    search, score, rates = config.search, config.score, len(config.control.learning_rates)
    widens = rates > 1 and config.control.widen > 0
    more = f" (up to {rates + config.control.widen} if the best is at an end)" if widens else ""
    again = f", {search.replicates} further training seeds of each finalist" if search.replicates else ""
    return (
        f"{search.trials} trials, {rates} control{'s' * (rates > 1)}{more}, {search.max_concurrent} at a time; then "
        f"{score.finalists} finalists on {2 * score.blocks} × {score.samples:,} images{again}"
    )


def time(config: StudyConfig, before: SizeResults | None, like: SizeResults | None) -> str:
    """By what the trials of the same size took, in this study or in another one of this storage."""
    if like is None:
        return "not known before a first trial; --minutes or --gpu-hours limits it"
    ended = [t for t in like.trials if t.state in ENDED_NAMES]
    mean = sum(t.seconds for t in ended) / len(ended)
    planned = config.search.trials + len(config.control.learning_rates)
    done = sum(t.state in ENDED_NAMES for t in before.trials) if before else 0
    left = max(0, planned - done) * mean / config.search.max_concurrent
    left += final_seconds(config, [rung for t in ended for rung in t.rungs]) if not (before and before.summary) else 0
    of = f"{len(ended)} trials took {mean:.0f} s each, here" + (" before" if before else " in another study")
    return f"about {left / 60:.0f} minutes ({of}); making a small base comes on top"


def disk(config: StudyConfig) -> str:
    """The weights of every trial, and a checkpoint with optimizer and EMA, until `clean` takes those away."""
    if config.base.embedded is None:
        assert config.base.checkpoint is not None
        path = local_path(config.base.checkpoint)
        weights = float(path.stat().st_size) if path.is_file() else 0.0
    else:
        weights = 4.0 * parameters_of(config)
    if not weights:
        return "not known: the base's weights are not on this machine"
    copies = 1 + 3 + bool(config.train.ema_decay)
    count = config.search.trials + len(config.control.learning_rates)
    whole = count * copies * weights
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if whole >= s or u == "kB")
    return f"about {whole / size:.2g} {unit} ({count} trials × weights and checkpoint, {copies} times the weights)"


def parameters_of(config: StudyConfig) -> int:
    """Of the embedded base, which need not be there yet."""
    family, images = family_of(config.base.family), digits()
    tokenizer = blank_tokenizer(family, config.pretrain)
    length = tokenizer.config.length(config.pretrain.image_size)
    return parameters(blank_model(family, config.base.size, tokenizer, len(images.class_names), length))
