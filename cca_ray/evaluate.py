"""Score a checkpoint, or images in an `.npz`, under a study's protocol; prints JSON.

FID, sFID, inception score, precision and recall, as the ADM evaluator computes them, and every other metric that there
is.  What the files do not allow is null: sFID wants `mu_s` and a network with spatial features, KID, precision and
recall want features of real images in the reference, or these images (`arr_0`).

cca-ray evaluate digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray evaluate digits_s --samples 1800 --guidance-scale 1.5     the base, with guidance
cca-ray evaluate llamagen_b --npz all.npz                         images that something else has made
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cca_ray.config import MOST_SEED
from cca_ray.errors import ConfigError
from cca_ray.evaluation import measure
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.space_file import load_config
from cca_ray.terminal.console import CheckpointOption, Console, GuidanceOption, SpaceArgument, StorageOption, place, run
from cca_ray.training.small_base import check_files, resolve


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    checkpoint: CheckpointOption = None,
    npz: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Score these images instead: arr_0, uint8 NHWC.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Images to sample; by default score.samples.")] = None,
    guidance_scale: GuidanceOption = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED, help="Of the noise; by default score.seed.")] = None,
    storage: StorageOption = Path("runs"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as score.top_k=100; repeatable.")
    ] = None,
) -> None:
    """Score a checkpoint or an .npz of images."""
    if checkpoint is not None and npz is not None:
        raise ConfigError("--checkpoint and --npz: give one of them")
    config = load_config(find_space(space), set_ or [])
    check_files(config)
    config = resolve(config, storage, Console(sys.stderr).progress)
    found = measure.evaluate(config, checkpoint, npz, samples, guidance_scale, seed)
    protocol = found.protocol
    if found.given:
        made_of = protocol.model_dump(include={"extractor", "reference", "samples"})
    else:
        made_of = {"protocol_id": protocol.id, "protocol": protocol.model_dump()}
    print(json.dumps({**found.values, **made_of}, indent=1))


if __name__ == "__main__":
    run(main)
