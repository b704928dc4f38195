"""What a study would do, before it does it: trials, hours, money, time, disk; new, or continued from where."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from optuna.trial import TrialState

from cca_ray.cluster.queue import Node
from cca_ray.config import StudyConfig
from cca_ray.data.labelled_images import digits
from cca_ray.errors import ConfigError
from cca_ray.models.family import family_of
from cca_ray.models.official import parameters
from cca_ray.placement_config import CPU
from cca_ray.reporting.lessons import would_learn
from cca_ray.reporting.results import SizeResults, StudyResults, TrialRow, read_study, studies_in
from cca_ray.search.forecast import HOUR, Speed, Work, at_once, speed_on_a_core, speeds_by_arithmetic, wall_hours
from cca_ray.search.records import ENDED_NAMES, device_seconds_of
from cca_ray.storage.uris import is_copy, local_path, to_uri
from cca_ray.training.roofline import size_of
from cca_ray.training.small_networks import blank_model, blank_tokenizer

Prices = Mapping[str, float]  # of an hour, by type of card; of any other card under the empty name
MOST_STUDIES = 20  # of a storage that are read for how long a trial takes; at a URI, a few


class EmbeddedBase(NamedTuple):
    """Of a base that need not be made yet. `tokens`: an image; `images`: with all variants."""

    parameters: int
    tokens: int
    images: int


def plan_of(
    configs: Sequence[StudyConfig],
    storage: Path,
    name: str,
    nodes: Sequence[Node],
    minutes: float | None = None,
    hours: float | None = None,
    prices: Prices | None = None,
) -> list[str]:
    """Lines for people. `nodes`: of the cluster, as it is now; `minutes`, `hours`: the budget.

    ConfigError if a price is of a card whose name is written in another case.
    """
    known = list(known_studies(storage, name, [config.name for config in configs]))
    study = next((study for study in known if study.name == name), None)
    ended = sum(t.state in ENDED_NAMES for size in study.sizes for t in size.trials) if study else 0
    state = f"continued; {ended} trials have ended" if study else "new"
    lines = [f"study {name} in {to_uri(storage / name)}: {state}"]
    cards, hours_of, walls = set[str](), list[dict[str, float]](), list[float | None]()
    for config in configs:
        by_study = {other.name: size for other in known if (size := size_named(config.name, other))}
        base = embedded_base(config) if config.base.embedded else None
        speeds = speeds_unmeasured(config, base)
        if by_study:
            other, like = next(iter(by_study.items()))
            measured = speeds_measured(config, like, other)
            speeds = [*measured, *(speed for speed in speeds if speed.card not in {m.card for m in measured})]
        before = by_study.get(name)
        done = Counter(t.arm for t in before.trials if t.state in ENDED_NAMES) if before else None
        work = Work.of(config, done, finished=bool(before and before.summary))
        cards |= {speed.card for speed in speeds}
        lines.append(f"{config.name}: {trials(config)}")
        lines.append(f"  rungs: {rungs(config)}")
        begun = next((size.learnt for size in study.sizes if size.name == config.name), None) if study else None
        lines += [f"  {line}" for line in would_learn(config, storage / name, begun)]
        lines += [f"  {line}" for line in cost(work, speeds, prices or {})]
        lines += [f"  time: {time(config, work, speeds, nodes)}", f"  disk: {disk(config, base)}"]
        hours_of.append({speed.card: work.hours(speed) for speed in speeds})
        walls.append(wall_hours(config, work, speeds, nodes) if work else 0.0)
    if len(configs) > 1:
        lines += in_total(hours_of, walls, prices or {}, nodes)
    lines += unused(prices or {}, cards)
    given = " and ".join(f"{value:g} {unit}" for value, unit in ((minutes, "minutes"), (hours, "GPU-hours")) if value)
    if given:
        lines.append(f"budget: {given} for all sizes together; no trial starts that would exceed it")
    return lines


def known_studies(storage: Path, name: str, sizes: Sequence[str]) -> Iterator[StudyResults]:
    """Those that can be read, that of this name first; others until all sizes are known: they tell the time."""
    try:
        names = sorted(studies_in(storage), key=lambda other: other != name)
    except (ValueError, OSError):
        return
    unknown = set(sizes)
    for each in names[: 3 if is_copy(storage) else MOST_STUDIES]:
        if not unknown:
            return
        try:
            study = read_study(storage, each)
        except (ValueError, OSError):
            continue
        unknown -= {size for size in sizes if size_named(size, study)}
        yield study


def size_named(name: str, study: StudyResults) -> SizeResults | None:
    """That of this name, if a trial of it has ended."""
    sizes = (size for size in study.sizes if size.name == name)
    return next((size for size in sizes if any(t.state in ENDED_NAMES for t in size.trials)), None)


def trials(config: StudyConfig) -> str:
    search, score, rates = config.search, config.score, len(config.control.learning_rates)
    more = f" (up to {rates + config.control.widen} if the best rate is at the edge)" if widens(config) else ""
    again = f", {search.replicates} further training seeds for each finalist" if search.replicates else ""
    return (
        f"{search.trials} trials, {rates} control{'s' * (rates > 1)}{more}, {search.max_concurrent} at a time; then "
        f"{score.finalists} finalists on {score.blocks} × {score.samples:,} images, the winner on twice as many{again}"
    )


def widens(config: StudyConfig) -> bool:
    """Whether the control may try further learning rates."""
    return len(config.control.learning_rates) > 1 and config.control.widen > 0


def rungs(config: StudyConfig) -> str:
    return ", ".join(f"{rung.samples:,} images at {100 * rung.at:.3g} %" for rung in config.rungs) + " of a trial"


def speeds_unmeasured(config: StudyConfig, base: EmbeddedBase | None) -> list[Speed]:
    """By arithmetic: of an official size on the cards of its table, of an embedded one on a core; of others none."""
    if base is None:
        return speeds_by_arithmetic(config)
    return [speed_on_a_core(base.parameters, base.tokens, base.images * config.train.epochs)]


def speeds_measured(config: StudyConfig, like: SizeResults, study: str) -> list[Speed]:
    """By card, of completed trials of a size of this name and family that ran on one type of card alone."""
    if like.settings.base.family != config.base.family:
        return []
    by_card: dict[str, list[TrialRow]] = {}
    for trial in like.trials:
        if trial.state == TrialState.COMPLETE.name and trial.seconds and trial.rungs and len(cards_of(trial)) == 1:
            by_card.setdefault(next(iter(cards_of(trial))), []).append(trial)
    return [
        speed_of(some, card, config.train.epochs / like.settings.train.epochs, study) for card, some in by_card.items()
    ]


def cards_of(trial: TrialRow) -> Mapping[str, float]:
    """Its seconds of one card, by type; version 0.1.0 had none of processors."""
    return device_seconds_of(trial.frozen) or {CPU: trial.seconds}


def speed_of(some: Sequence[TrialRow], card: str, longer: float, study: str) -> Speed:
    """By what these trials took on this card; a new one trains so much longer."""
    training = dict[bool, list[float]]()
    scoring = 0.0
    for trial in some:
        share = sum(rung.scoring_seconds for rung in trial.rungs) / trial.seconds
        hours = cards_of(trial)[card] / HOUR
        scoring += share * hours
        training.setdefault(trial.arm == "control", []).append(max(0.0, 1 - share) * hours * longer)
    means = {control: sum(hours) / len(hours) for control, hours in training.items()}
    image = scoring / sum(rung.samples for trial in some for rung in trial.rungs)
    mean = sum(trial.seconds for trial in some) / len(some)
    return Speed(
        card,
        trial=means.get(False, means.get(True, 0.0)),
        control=means.get(True, means.get(False, 0.0)),
        image=image,
        guided=2 * image,
        source=f"measured: {len(some)} trial{'s' * (len(some) > 1)} of study {study} took {words(mean / HOUR)} each",
    )


def cost(work: Work, speeds: Sequence[Speed], prices: Prices) -> list[str]:
    """A line a type of card: what is left if all of it ran there, and no trial were stopped at a rung."""
    lines = []
    for speed in speeds:
        training, whole = work.training(speed), work.hours(speed)
        scoring, money = whole - training, money_of(whole, speed.card, prices)
        share, unit = 100 * scoring / whole if whole else 0.0, "core" if speed.card == CPU else "card"
        lines.append(
            f"on {speed.card}: {words(whole)} on one {unit} if no trial is stopped at a rung (training "
            f"{words(training)}, scoring {words(scoring)}: {share:.0f} %){money}; {speed.source}"
        )
    return lines


def money_of(hours: float, card: str, prices: Prices) -> str:
    """`; 204 at 4.9 an hour`; empty without a price."""
    price = prices.get(card, prices.get("") if card != CPU else None)
    return f"; {amount(hours * price)} at {price:g} an hour" if price is not None else ""


def in_total(
    hours_of: Sequence[Mapping[str, float]], walls: Sequence[float | None], prices: Prices, nodes: Sequence[Node]
) -> Iterator[str]:
    """Of several sizes. `hours_of`: of one card of each type, by size; only cards that all sizes can run on."""
    yield "in all:"
    for card in (card for card in hours_of[0] if all(card in hours for hours in hours_of)):
        whole = sum(hours[card] for hours in hours_of)
        unit = "core" if card == CPU else "card"
        yield f"  on {card}: {words(whole)} on one {unit}{money_of(whole, card, prices)}"
    known = [wall for wall in walls if wall is not None]
    wall = f"about {words(sum(known))} on {in_all(nodes)}, one size after another"
    yield f"  time: {wall if len(known) == len(walls) else 'unknown, as that of a size above'}"


def unused(prices: Prices, cards: Set[str]) -> list[str]:
    """A line for each price of a card that no line is about: a list of prices may be for other studies, too.

    ConfigError if its name is written in another case.
    """
    lines, there = [], ", ".join(sorted(cards)) or "none"
    for card, price in prices.items():
        if card in cards or not card:
            continue
        if meant := next((known for known in cards if known.lower() == card.lower()), ""):
            raise ConfigError(f"--price {card}={price:g}: unknown card; did you mean {meant}?")
        lines.append(f"price of {card}: not used, because no line above is about this card; they are about {there}")
    return lines


def amount(money: float) -> str:
    return f"{money:,.0f}" if money >= 100 else f"{money:.2f}"


def time(config: StudyConfig, work: Work, speeds: Sequence[Speed], nodes: Sequence[Node]) -> str:
    """Wall time on these nodes, if all are free."""
    if not work:
        return "nothing left to do"
    if not speeds:
        return "unknown until a first trial has run; --minutes or --gpu-hours sets a limit"
    most = min(config.search.max_concurrent, work.trials + work.controls)
    if not (placed := at_once(config.placement, max(1, most), nodes)):
        return f"unknown: no trial fits on {in_all(nodes)} as it is now"
    wall = wall_hours(config, work, speeds, nodes)
    if wall is None:
        return f"not known for {in_all(nodes)}"
    made = "; plus the time to make a small base" if config.base.embedded else ""
    together = f"{len(placed)} trial{'s' * (len(placed) > 1)} at a time"
    return f"about {words(wall)} on {in_all(nodes)}, {together}{made}"


def in_all(nodes: Sequence[Node]) -> str:
    """`8 H100, 2 CPU`: what these nodes have."""
    have: dict[str, float] = {}
    for node in nodes:
        have[node.type] = have.get(node.type, 0.0) + (node.gpus or node.cpus)
    return ", ".join(f"{count:g} {type_}" for type_, count in sorted(have.items()))


def words(hours: float) -> str:
    """As people say it, to two or three digits."""
    if hours >= 2:
        return f"{hours:,.{int(hours < 10)}f} hours"
    return f"{60 * hours:.0f} minutes" if 60 * hours >= 2 else f"{HOUR * hours:.0f} s"


def disk(config: StudyConfig, base: EmbeddedBase | None) -> str:
    """The weights of every trial, and a checkpoint with optimizer and EMA, until `clean` takes those away."""
    if base is None:
        assert config.base.checkpoint is not None
        path, size = local_path(config.base.checkpoint), size_of(config)
        weights = float(path.stat().st_size) if path.is_file() else 4.0 * size.parameters if size else 0.0
    else:
        weights = 4.0 * base.parameters
    if not weights:
        return "unknown: the base's weights are not on this machine"
    copies = 1 + 3 + bool(config.train.ema_decay)
    count = config.search.trials + len(config.control.learning_rates) + config.replicates
    most = count + (config.control.widen if widens(config) else 0)
    whole = most * copies * weights
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if whole >= s or u == "kB")
    of_each = f"weights and checkpoint, {copies} times the size of the weights"
    about = float(f"{whole / scale:.2g}")
    return f"about {about:g} {unit} ({'up to ' * (most > count)}{most} trials × {of_each})"


def embedded_base(config: StudyConfig) -> EmbeddedBase:
    family, images = family_of(config.base.family), digits()
    tokenizer = blank_tokenizer(family, config.pretrain)
    length = tokenizer.config.length(config.pretrain.image_size)
    model = blank_model(family, config.base.size, tokenizer, len(images.class_names), length)
    return EmbeddedBase(parameters(model), length, len(images.images) * config.pretrain.variants)
