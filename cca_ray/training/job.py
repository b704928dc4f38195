"""One fine-tuning as plain values: what a worker is given."""

import json
from dataclasses import dataclass
from pathlib import Path

from cca_ray.config import ResolvedStudy, Train
from cca_ray.storage.uris import local_path, to_uri


@dataclass(frozen=True)
class Job:
    """One fine-tuning. `config` has its paths resolved; `folder` receives checkpoint, grids and final weights."""

    config: ResolvedStudy
    train: Train
    folder: Path
    table: Path | None = None  # folder of the reference's log-likelihoods; None: a second model in memory

    def packed(self) -> str:
        """As JSON, for Ray; files by names that are good on every node."""
        config = self.config.with_paths({key: to_uri(path) for key, path in self.config.paths().items()})
        content = {
            "config": config.model_dump_json(by_alias=True),
            "plugins": [str(info) for info in config.plugins_used()],
            "train": self.train.model_dump_json(by_alias=True),
            "folder": to_uri(self.folder),
            "table": to_uri(self.table) if self.table else None,
        }
        return json.dumps(content)

    @staticmethod
    def unpacked(packed: str) -> "Job":
        """The job with the local places of its files on this node. ValueError if a plug-in's code is another here."""
        content = json.loads(packed)
        config = ResolvedStudy.model_validate_json(content["config"])
        if others := set(content["plugins"]) - {str(info) for info in config.plugins_used()}:
            module = min(others).split()[0]
            raise ValueError(f"plug-in {module}: its source is not the same here as where the study was begun")
        return Job(
            config=config.with_paths({key: str(local_path(path)) for key, path in config.paths().items()}),
            train=Train.model_validate_json(content["train"]),
            folder=local_path(content["folder"]),
            table=local_path(content["table"]) if content["table"] else None,
        )
