"""Images from a checkpoint: a PNG grid, an `.npz` that the ADM evaluator reads, or both.

cca-ray sample digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray sample digits_s --guidance-scale 1.5 --out guided.png                    the base, with guidance
cca-ray sample llamagen_b --checkpoint winner.pt --count 50000 --npz all.npz     for the ADM evaluator
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from cca_ray.errors import ConfigError
from cca_ray.evaluation.sampler import image_grid
from cca_ray.evaluation.scoring import load_base, protocol_of, sample_shards, scoring_of
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.space_file import load_config
from cca_ray.storage.files import atomically
from cca_ray.terminal.console import CheckpointOption, Console, SpaceArgument, place, run
from cca_ray.training.small_base import check_files, resolve

SHOWN = 400  # images of a grid, at most


class NpzWriter:
    """Writes `arr_0` [N, H, W, 3] uint8 a batch at a time, for 50,000 images of 256 pixels are 10 GB."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.archive = zipfile.ZipFile(path, "w", allowZip64=True)
        self.array = self.archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.array, header)  # the evaluator streams this version

    def add(self, images: np.ndarray) -> None:
        self.array.write(np.ascontiguousarray(images).data)

    def close(self, labels: np.ndarray) -> None:
        """Ends the file with the labels [N]."""
        self.array.close()
        with self.archive.open("labels.npy", "w") as file:
            np.save(file, labels)
        self.archive.close()


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    checkpoint: CheckpointOption = None,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 100,
    guidance_scale: Annotated[float, typer.Option(min=0, help="1: guidance-free.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .png: a grid of the first images.")] = None,
    npz: Annotated[Path | None, typer.Option(help="An .npz for the ADM evaluator: arr_0 (uint8 NHWC), labels.")] = None,
    storage: Annotated[
        Path, typer.Option(parser=place, metavar="PATH", help="Folder or URI of the bases, as of `tune`.")
    ] = Path("runs"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as score.top_k=100; repeatable.")
    ] = None,
) -> None:
    """Sample images from a checkpoint."""
    if npz is None:
        out = out or Path("samples.png")
    for option, path, suffix in (("--out", out, ".png"), ("--npz", npz, ".npz")):
        if path is not None and path.suffix != suffix:
            raise ConfigError(f"{option} {path}: want a file that ends in {suffix}")
    config, console = load_config(find_space(space), set_ or []), Console()
    check_files(config)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    config = resolve(config, storage, console.progress)
    group = Group()
    scoring = scoring_of(config, group.device)
    model = for_sampling(load_base(config, str(checkpoint) if checkpoint else None), config.placement, group)
    protocol = protocol_of(config, scoring, count, guidance_scale, seed)
    side, made = protocol.image_size, 0
    shown: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def images() -> Iterator[np.ndarray]:
        nonlocal made
        for _, batch, classes in sample_shards(model, scoring, protocol, group):
            array = batch.cpu().numpy()
            made += len(array)
            labels.append(classes.cpu().numpy())
            shown.extend(array[: max(0, SHOWN - len(shown))])
            console.progress("images", made, count)
            yield array

    def write(partial: Path) -> None:
        writer = NpzWriter(partial, (count, side, side, 3))
        for batch in images():
            writer.add(batch)
        writer.close(np.concatenate(labels))

    if npz is not None:
        atomically(npz, write)
        console.say(f"{count} images: {npz}")
    else:
        for _ in images():
            pass
    if out is not None:
        Image.fromarray(image_grid(np.stack(shown), min(scoring.num_classes, 10))).save(out)
        console.say(f"{len(shown)} images: {out}")


if __name__ == "__main__":
    run(main)
