"""A worker's sign of life: a file in its trial's folder that says which process it is."""

from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, ValidationError

from cca_ray.contracts import Contract


def started_at(pid: int) -> str:
    """When a process of this machine began, by the system's clock ticks: with the pid, its name for good."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


class Sign(Contract):
    """node, group: of Ray, in hex; a group that others share is not named."""

    pid: int
    started: str = ""
    node: str = ""
    group: str = Field("", validation_alias=AliasChoices("group", "gang"))  # version 0.1.0 called it a gang

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None if the file is damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError:
            return None
