"""Images from a checkpoint: a PNG grid, or an `.npz` that the ADM evaluator reads.

python -m cca_ray.sample digits_s --checkpoint runs/digits/digits_s/winner.pt --out grid.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from cca_ray.config import ConfigError, load_config
from cca_ray.console import DEFAULT_SPACES, Console, find_space, run
from cca_ray.pretrain import resolve
from cca_ray.sampler import image_grid
from cca_ray.worker import Group, load_base, protocol_of, sample_shards, scoring_of


def main(
    space: Annotated[str, typer.Argument(help="Search-space file, or the name of a shipped one.")] = DEFAULT_SPACES[0],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; without them, the base's.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images; classes in turn.")] = 100,
    guidance_scale: Annotated[float, typer.Option(min=0, help="1: guidance-free.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    out: Annotated[Path, typer.Option(help="A .png (grid, one class a column) or .npz (arr_0, labels).")] = Path(
        "samples.png"
    ),
    storage: Annotated[Path, typer.Option(help="Folder of the bases.")] = Path("runs"),
) -> None:
    """Sample images from a checkpoint."""
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: want a file that ends in .png or .npz")
    config, console = load_config(find_space(space)), Console()
    config = resolve(config, storage, console.progress)
    group = Group()
    scoring = scoring_of(config, group.device)
    model = load_base(config, str(checkpoint) if checkpoint else None).to(group.device)
    images, labels = [], []
    for image, label in sample_shards(model, scoring, protocol_of(config, scoring, count, guidance_scale, seed), group):
        images.append(image.cpu().numpy())
        labels.append(label.cpu().numpy())
        console.progress("images", sum(map(len, images)), count)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez(out, arr_0=np.concatenate(images), labels=np.concatenate(labels))
    else:
        Image.fromarray(image_grid(np.concatenate(images), min(scoring.num_classes, 10))).save(out)
    console.say(f"{count} images: {out}")


if __name__ == "__main__":
    run(main)
