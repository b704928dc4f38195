"""Images from a checkpoint: a PNG grid, an `.npz` that the ADM evaluator reads, or both.

cca-ray sample digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray sample digits_s --guidance-scale 1.5 --out guided.png                    the base, with guidance
cca-ray sample llamagen_b --checkpoint winner.pt --count 50000 --npz all.npz     for the ADM evaluator
"""

from pathlib import Path
from typing import Annotated

import typer

from cca_ray.config import MOST_SEED
from cca_ray.errors import ConfigError
from cca_ray.evaluation.samples import write_samples
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.space_file import load_config
from cca_ray.terminal.console import CheckpointOption, Console, GuidanceOption, SpaceArgument, StorageOption, place, run
from cca_ray.training.small_base import check_files, resolve


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    checkpoint: CheckpointOption = None,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 100,
    guidance_scale: GuidanceOption = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Write a grid of the first images to this .png.")
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="PATH", help="Write an .npz for the ADM evaluator: arr_0 (uint8, NHWC) and labels."
        ),
    ] = None,
    storage: StorageOption = Path("runs"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as score.top_k=100; repeatable.")
    ] = None,
) -> None:
    """Sample images from a checkpoint."""
    if npz is None:
        out = out or Path("samples.png")
    for option, path, suffix in (("--out", out, ".png"), ("--npz", npz, ".npz")):
        if path is not None and path.suffix != suffix:
            raise ConfigError(f"{option} {path}: expected a file that ends in {suffix}")
    config, console = load_config(find_space(space), set_ or []), Console()
    check_files(config)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    config = resolve(config, storage, console.progress)
    shown = write_samples(
        config, checkpoint, count, guidance_scale, seed, out, npz,
        lambda made, of: console.progress("images", made, of),
    )  # fmt: skip
    if npz is not None:
        console.say(f"{count} images: {npz}")
    if out is not None:
        console.say(f"{shown} images: {out}")


if __name__ == "__main__":
    run(main)
