"""What the last `tune` of a study asked for: its sizes, and how each was named, for the commands that go on from it."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from cca_ray.contracts import Contract
from cca_ray.errors import reading
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import command_line
from cca_ray.terminal.console import STORAGE_VARIABLE

ASKED = "asked.json"  # in a study's folder


class Named(Contract):
    """How a command named a size: its search space, a file or the name of a shipped one, and what it `--set`."""

    space: str
    settings: tuple[str, ...] = ()


class Asked(Contract):
    """What the file holds: the sizes of the last command, in the order in which they run; of all commands, the names.

    A size that never began has left nothing else.
    """

    sizes: tuple[str, ...] = ()
    named: dict[str, Named] = Field(default_factory=dict)


def write_asked(folder: Path, named: Mapping[str, Named]) -> None:
    """Sizes of an earlier command are no more asked for: what has begun is known without. Their names are kept.

    Raises OSError, and ValueError if what is there cannot be read.
    """
    kept = Asked(sizes=tuple(named), named={**read_asked(folder).named, **named}).model_dump_json(indent=1)
    atomically(folder / ASKED, lambda partial: partial.write_text(kept, encoding="utf-8"))


def read_asked(folder: Path) -> Asked:
    """Nothing of a study that an earlier version began. ValueError, in a line, if the file cannot be read."""
    if not pull(path := folder / ASKED):
        return Asked()
    with reading(path, "not the sizes of a study"):
        return Asked.model_validate_json(path.read_bytes())


def sampling(named: Named, winner: str, folder: Path) -> str:
    """The options of `sample` that draw from a size's winner as the study did. `folder`: the study's."""
    settings = (word for setting in named.settings for word in ("--set", setting))
    return command_line(named.space, "--checkpoint", winner, *settings, *in_storage(folder))


def in_storage(folder: Path) -> list[str | Path]:
    """The option that names the storage of a study with this folder; none of the storage that is taken without it."""
    usual = folder.parent == Path("runs").resolve() and STORAGE_VARIABLE not in os.environ
    return [] if usual else ["--storage", folder.parent]
