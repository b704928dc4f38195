"""Images from a checkpoint: a PNG grid, an `.npz` that the ADM evaluator reads, or both.

cca-ray sample digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray sample digits_s --guidance-scale 1.5 --out guided.png                    the base, with guidance
cca-ray sample llamagen_b --checkpoint winner.pt --count 50000 --npz all.npz     for the ADM evaluator
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cca_ray.config import MOST_SEED
from cca_ray.errors import ConfigError
from cca_ray.evaluation.samples import Samples, make_samples
from cca_ray.inputs import DEFAULT_SPACES, find_space, refuse_missing
from cca_ray.space_file import as_settings, load_config
from cca_ray.storage.uris import to_uri
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import CheckpointOption, Console, GuidanceOption, SpaceArgument, StorageOption, place, run
from cca_ray.training.small_base import check_files, resolve


@in_python
def sample(
    space: str | Path = DEFAULT_SPACES[0],
    checkpoint: str | Path | None = None,
    count: int = 100,
    guidance_scale: float = 1.0,
    seed: int = 0,
    out: str | Path | None = None,
    npz: str | Path | None = None,
    storage: str | Path = "runs",
    settings: Mapping[str, object] | Sequence[str] = (),
    *,
    quiet: bool = False,
) -> Samples:
    """Sample images, also into files, if they are named: a grid (`out`, .png), an `.npz` for the ADM evaluator.

    `space`: a search space's file, or the name of a shipped one. `checkpoint`: the weights; by default those of the
    base. `settings` override the search space, as in `{"score.top_k": 100}`. Nothing is written without `out` or `npz`,
    and all images are returned; else the first 400.
    """
    out, npz = (None if path is None else Path(path) for path in (out, npz))
    for option, path, suffix in (("out", out, ".png"), ("npz", npz, ".npz")):
        if path is not None and path.suffix != suffix:
            raise ConfigError(f"--{option} {path}: expected a file that ends in {suffix}")
    refuse_missing(checkpoint)
    config, console = load_config(find_space(str(space)), as_settings(settings)), Console(quiet=quiet)
    check_files(config)
    config = resolve(config, Path(storage), console.progress)
    made = make_samples(
        config, None if checkpoint is None else Path(checkpoint), count, guidance_scale, seed, out, npz,
        lambda done, of: console.progress("images", done, of),
    )  # fmt: skip
    if npz is not None:
        console.say(f"{count} images: {to_uri(npz)}")
    if out is not None:
        console.say(f"{len(made.images)} images: {to_uri(out)}")
    return made


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
    out = out or (Path("samples.png") if npz is None else None)
    sample(space, checkpoint, count, guidance_scale, seed, out, npz, storage, set_ or [])


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
