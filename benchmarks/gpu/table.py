"""What was measured on a card, kept in a JSON file, and the table that is made of it."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import made_by
from benchmarks.gpu.made import DRY
from cca_ray.cluster.device import driver
from cca_ray.contracts import Contract
from cca_ray.errors import ConfigError, reading
from cca_ray.storage.files import atomically


class Measured(Contract):
    """One case: its figures by name, on which software and by which code, how long that took."""

    figures: dict[str, float]
    software: str
    made_by: str
    seconds: float

    @property
    def maker(self) -> str:
        return f"{self.software}; {self.made_by}"


class Results(Contract):
    """The file: cases by name, all of one card."""

    card: str
    cases: dict[str, Measured]


def software() -> str:
    return f"{driver()}, CUDA {torch.version.cuda or 'none'}, PyTorch {torch.__version__}, {platform.platform()}"


class Store:
    """Of results, on the disk after every case: a run that was cut short goes on. Without a path in memory alone."""

    def __init__(self, path: Path | None, card: str):
        self.path, self.software, self.made_by = path, software(), made_by()
        self.results = Results(card=card, cases={})
        if path is not None and path.exists():
            with reading(path, "not a file of this benchmark; use another --json"):
                self.results = Results.model_validate_json(path.read_bytes())
        if self.results.card != card:
            raise ConfigError(f"{path}: is of {self.results.card}, and here is {card}; use another --json")

    def __contains__(self, name: str) -> bool:
        return name in self.results.cases

    def add(self, name: str, figures: Mapping[str, float], seconds: float) -> None:
        case = Measured(figures=dict(figures), software=self.software, made_by=self.made_by, seconds=round(seconds, 1))
        self.results = self.results.model_copy(update={"cases": {**self.results.cases, name: case}})
        if self.path is not None:
            text = self.results.model_dump_json(indent=1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomically(self.path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))

    def figure(self, of: tuple[str, str]) -> float | None:
        """(case, figure); None if it was not measured."""
        case = self.results.cases.get(of[0])
        return case.figures.get(of[1]) if case else None

    @property
    def makers(self) -> list[str]:
        """What the cases were measured by, each once: a run that goes on may be of other software, or other code."""
        return list(dict.fromkeys(case.maker for case in self.results.cases.values()))

    def numbers(self, *names: str) -> str:
        """Which of several makers these cases are of; nothing if there is one, or none was measured."""
        found = [self.results.cases[name].maker for name in names if name in self]
        makers = sorted({1 + self.makers.index(maker) for maker in found}) if len(self.makers) > 1 else []
        return f" [{', '.join(map(str, makers))}]" if makers else ""


@dataclass(frozen=True)
class Goal:
    """Of a ratio, or of a figure that stands alone."""

    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None]
        return ", ".join(bounds)

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Line:
    """A row of the table. `beside`: what the figure is divided by; `said`: what that is, in words."""

    what: str
    of: tuple[str, str]
    beside: tuple[str, str] | None = None
    said: str = ""
    goal: Goal | None = None


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def row(line: Line, store: Store) -> str:
    own, other = store.figure(line.of), store.figure(line.beside) if line.beside else None
    ratio = own / other if own is not None and other else None
    judged = None if store.results.card == DRY else ratio if line.beside else own
    met = "" if line.goal is None or judged is None else "yes" if line.goal.met(judged) else "**no**"
    cells = [line.what, number(own), f"{line.said}: {number(other)}" if line.beside else ""]
    of = store.numbers(line.of[0], *([line.beside[0]] if line.beside else []))
    cells += [f"{ratio:.2f} ×" if ratio is not None else "", str(line.goal or ""), met, f"{store.results.card}{of}"]
    return f"| {' | '.join(cells)} |"


def table(lines: Sequence[Line], store: Store) -> str:
    head = "| | figure | beside | ratio | goal | met | card |\n|" + "---|" * 7
    return "\n".join([head, *(row(line, store) for line in lines)])


def below(store: Store) -> str:
    """What stands below the table: what it was made by; of several, rows say by which number."""
    makers = store.makers
    told = [f"[{number}] {maker}" if len(makers) > 1 else maker for number, maker in enumerate(makers, 1)]
    minutes = sum(case.seconds for case in store.results.cases.values()) / 60
    return "\n".join([*told, f"{minutes:.1f} minutes", str(store.path or "not kept")])
