"""The last lines of a study's output: what is better, equal or worse, how sure that is, and what to do next."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from cca_ray.contracts import Role, SizeSummary
from cca_ray.terminal.console import Console
from cca_ray.verdict import (
    JUDGED,
    MARKS,
    WORDS,
    advice,
    advice_in_short,
    compared,
    difference,
    headline,
    in_multiples,
    noise,
    told,
    worst,
)

STYLES = {1: "green", 0: "yellow", -1: "bold red"}
LAST = 12  # lines, in which all of that should have room


def last_words(console: Console, study: str, sizes: Sequence[SizeSummary], width: int | None) -> None:
    """`width`: of the terminal, if there is one."""

    def lines_of(text: str) -> list[str]:
        return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False) if width else [text]

    last = [line for text in advice(sizes) for line in lines_of(f"next: {text}")]
    outcome, ends = list(at_length(sizes)), list[str]()
    if len(outcome) + len(last) > LAST:
        outcome = list(in_short(sizes))
    if len(outcome) + len(last) > LAST:
        last = lines_of(f"next: {advice_in_short(sizes)}")
        ends = [f"{size.size}: {told(edge)}" for size in sizes for edge in size.edges]
    plain = [line for text in (*ends, f"{noise(sizes)}.", f"{study}: {headline(sizes)}") for line in lines_of(text)]
    for line, style in [*((line, "") for line in plain), *outcome, *((line, "") for line in last)]:
        console.rich.print(Text(line, style), soft_wrap=True)


def at_length(sizes: Sequence[SizeSummary]) -> Iterator[tuple[str, str]]:
    """Two lines a size, each with its style."""
    column = max(len(size.size) for size in sizes)
    for size in sizes:
        begins = f"{size.size:{column}}  {size.headline.label} {size.value('tuned'):.2f}"
        for begin, other in zip((begins, " " * len(begins)), JUDGED, strict=True):
            yield f"{begin}  {beside(size, other)}", STYLES[compared(size, other)]


def in_short(sizes: Sequence[SizeSummary]) -> Iterator[tuple[str, str]]:
    """A line a size, and one that says what its numbers are."""
    labels = " or ".join(dict.fromkeys(size.headline.label for size in sizes))
    yield f"winner minus other, 95 % interval of {labels}:", ""
    column = max(len(size.size) for size in sizes)
    wide = {other: max(len(interval(size, other)) for size in sizes) for other in JUDGED}
    for size in sizes:
        both = "  ".join(
            f"{other} {MARKS[sign]} {WORDS[sign]:6} {interval(size, other):{wide[other]}}"
            for other in JUDGED
            for sign in [compared(size, other)]
        )
        yield f"{size.size:{column}}  {both}".rstrip(), STYLES[worst(size)]


def beside(size: SizeSummary, other: Role) -> str:
    """`✗ WORSE than guided 35.12: +3.62 (95 %: +2.10 to +5.10)`."""
    sign = compared(size, other)
    word = f"{MARKS[sign]} {WORDS[sign]} {'than' if sign else 'to'} {other}"
    return f"{word} {size.value(other):.2f}: {difference(size, other) or in_multiples(size, other)}"


def interval(size: SizeSummary, other: Role) -> str:
    """`+2.10 to +5.10`; of version 0.1.0, which had none, `1.10 ×`."""
    found = size.differences.get(other)
    return f"{found.low:+.2f} to {found.high:+.2f}" if found else in_multiples(size, other)
