"""The protocol that names a score: a score means nothing without it."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

ADDED = ("guidance_power", "last_temperature", "plugins", "captions")  # since version 0.1.0
SHARD = 256  # images a shard: states are merged by shard, so a sum does not depend on who made which


class Protocol(BaseModel):
    """Everything that a FID depends on besides the model. Two scores compare only if their ids are equal.

    `guidance_scale` and the rest are those of `sampler.Decoding`. Labels are fixed by index and, if `random`, seed.
    What came after version 0.1.0 counts where it is used, so that the ids of older scores stay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    extractor: str  # digest of the feature network
    reference: str  # digest of the reference statistics
    samples: int
    seed: int
    image_size: int  # pixels along a side, as fed to the extractor
    labels: Literal["balanced", "random"] = "balanced"
    resize: str = "none"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the model that is sampled
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_power: float = 0.0
    last_temperature: float | None = None
    plugins: tuple[str, ...] = ()  # the code of others that took part: module, version, digest of its source
    captions: str = ""  # digest of the token set whose images' captions are sampled; of classes none

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that name this protocol."""
        unused = {name for name in ADDED if getattr(self, name) == type(self).model_fields[name].default}
        canonical = json.dumps(self.model_dump(exclude=unused), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]
