"""Which sizes the last `tune` of a study asked for: one that never began has left nothing else."""

from collections.abc import Sequence
from pathlib import Path

from cca_ray.contracts import Contract
from cca_ray.errors import reading
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull

ASKED = "asked.json"  # in a study's folder


class Asked(Contract):
    """What the file holds: the sizes of the last command, in the order in which they run."""

    sizes: tuple[str, ...]


def write_asked(folder: Path, sizes: Sequence[str]) -> None:
    """Those of an earlier command are forgotten: what has begun is known without, what has not is no more asked for.

    Raises OSError.
    """
    content = Asked(sizes=tuple(sizes)).model_dump_json(indent=1)
    atomically(folder / ASKED, lambda partial: partial.write_text(content, encoding="utf-8"))


def read_asked(folder: Path) -> tuple[str, ...]:
    """None of a study that an earlier version began. ValueError, in a line, if the file cannot be read."""
    if not pull(path := folder / ASKED):
        return ()
    with reading(path, "not the sizes of a study"):
        return Asked.model_validate_json(path.read_bytes()).sizes
