"""The last lines of a study's output: what is better, equal or worse, how sure that is, and what to do next."""

import textwrap
from collections.abc import Sequence

from rich.text import Text

from cca_ray.contracts import Role, SizeSummary
from cca_ray.terminal.console import Console
from cca_ray.verdict import JUDGED, MARKS, WORDS, advice, compared, difference, headline, noise, ratio

STYLES = {1: "green", 0: "yellow", -1: "bold red"}


def last_words(console: Console, study: str, sizes: Sequence[SizeSummary], width: int | None) -> None:
    """`width`: of the terminal, if there is one."""

    def say(text: str, style: str = "") -> None:
        filled = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False) if width else text
        console.rich.print(Text(filled, style), soft_wrap=True)

    say(f"{noise(sizes)}.")
    say(f"{study}: {headline(sizes)}")
    column = max(len(size.size) for size in sizes)
    for size in sizes:
        begins = f"{size.size:{column}}  {size.headline.label} {size.value('tuned'):.2f}"
        for begin, other in zip((begins, " " * len(begins)), JUDGED, strict=True):
            line = f"{begin}  {beside(size, other)}"
            console.rich.print(Text(line, STYLES[compared(size, other)]), soft_wrap=True)
    for line in advice(sizes):
        say(f"next: {line}")


def beside(size: SizeSummary, other: Role) -> str:
    """`✗ WORSE than guided 35.12: +3.62 (95 %: +2.10 to +5.10)`."""
    sign = compared(size, other)
    word = f"{MARKS[sign]} {WORDS[sign]} {'than' if sign else 'to'} {other}"
    return f"{word} {size.value(other):.2f}: {difference(size, other) or f'{ratio(size, other):.2f} ×'}"
