"""A command of the user's that is told of a study's end: mail and chat need no feature of ours."""

import json
import subprocess
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cca_ray.contracts import Contract, SizeSummary
from cca_ray.verdict import JUDGED, WORDS, advice, compared, headline, verdict

LONGEST_S = 60.0  # that the command may take


class News(Contract):
    """What the command reads from its standard input, as JSON. `sizes`: by name, how each compares with what."""

    event: Literal["finished", "incomplete", "failed", "interrupted"]
    study: str
    folder: str
    headline: str
    sizes: dict[str, dict[str, str]] = Field(default_factory=dict)
    verdicts: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()


def news_of(study: str, folder: str, sizes: Sequence[SizeSummary], trouble: Sequence[str], event: str = "") -> News:
    """`event`: how the study ended, unless it came to its end: then `incomplete` if something is missing."""
    how = event or ("incomplete" if trouble else "finished")
    return News.model_validate({
        "event": how,
        "study": study,
        "folder": folder,
        "headline": headline(sizes) if sizes else f"{how}: {'; '.join(trouble)}".rstrip(": "),
        "sizes": {size.size: {role: WORDS[compared(size, role)].lower() for role in JUDGED} for size in sizes},
        "verdicts": tuple(verdict(size) for size in sizes),
        "next": tuple(advice(sizes)),
        "trouble": tuple(trouble),
    })  # fmt: skip


def notify(command: str, news: News) -> str:
    """Run the command in a shell; what went wrong with it, in a line, or nothing. Raises nothing of its own."""
    if not command:
        return ""
    # UTF-8 wherever we are, as JSON is; half a character, as of a folder's name that is not UTF-8, stays one as \udce9.
    content = json.dumps(news.model_dump(), ensure_ascii=False).encode(errors="backslashreplace")
    try:
        done = subprocess.run(  # noqa: S602 (it is the user's own command line)
            command, shell=True, input=content, capture_output=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"--notify: the command took longer than {LONGEST_S:.0f} s"
    except (OSError, ValueError) as error:  # ValueError: no command line at all, as one with a null character
        return f"--notify: the command cannot be run: {error}"
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        return f"--notify: the command ended with exit code {done.returncode}" + (f": {said[-1]}" if said else "")
    return ""
