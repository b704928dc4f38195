"""Score a checkpoint, or images in an `.npz`, under a study's protocol; prints JSON.

python -m cca_ray.evaluate digits_s --checkpoint runs/digits/digits_s/winner.pt --samples 1800
"""

import json
import sys
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import torch
import typer

from cca_ray.config import ConfigError, load_config
from cca_ray.console import DEFAULT_SPACES, Console, find_space, run
from cca_ray.fid import Moments, frechet_distance, frechet_distance_few, inception_score
from cca_ray.pretrain import resolve
from cca_ray.worker import Group, Scoring, load_base, protocol_of, score, scoring_of


def read_images(path: Path, size: int) -> np.ndarray:
    """arr_0 [N, size, size, 3] uint8."""
    try:
        with np.load(path) as content:
            images: np.ndarray = content["arr_0"]
    except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile) as error:
        raise ConfigError(f"{path}: not an .npz with arr_0 ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3) or len(images) < 2:
        raise ConfigError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}; want uint8 [N, {size}, {size}, 3], N at least 2"
        )
    return images


@torch.inference_mode()
def score_images(images: np.ndarray, scoring: Scoring) -> dict[str, float]:
    """FID and inception score of given images."""
    device = next(scoring.features.parameters()).device
    chunks = [scoring.features(torch.from_numpy(images[i : i + 1024]).to(device)) for i in range(0, len(images), 1024)]
    features = torch.cat([f for f, _ in chunks]).cpu().numpy()
    few = len(features) < features.shape[1]
    distance = (
        frechet_distance_few(features, scoring.reference)
        if few
        else frechet_distance(Moments.of(features), scoring.reference)
    )
    probabilities = torch.cat([logits for _, logits in chunks]).softmax(-1).cpu().numpy()
    return {"fid": distance, "inception_score": inception_score(probabilities)}


def main(
    space: Annotated[str, typer.Argument(help="Search-space file, or the name of a shipped one.")] = DEFAULT_SPACES[0],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; without them, the base's.")] = None,
    npz: Annotated[Path | None, typer.Option(help="Score these images instead: arr_0, uint8 NHWC.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Images to sample; by default score.samples.")] = None,
    guidance_scale: Annotated[float, typer.Option(min=0, help="1: guidance-free.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; by default score.seed.")] = None,
    storage: Annotated[Path, typer.Option(help="Folder of the bases.")] = Path("runs"),
) -> None:
    """Score a checkpoint or an .npz of images."""
    if checkpoint is not None and npz is not None:
        raise ConfigError("--checkpoint and --npz: give one of them")
    config = load_config(find_space(space))
    config = resolve(config, storage, Console(sys.stderr).progress)
    group = Group()
    scoring = scoring_of(config, group.device)
    if npz is not None:
        images = read_images(npz, scoring.image_size)
        given = {"extractor": scoring.extractor, "reference": scoring.reference.digest, "samples": len(images)}
        print(json.dumps({**score_images(images, scoring), **given}, indent=1))
        return
    protocol = protocol_of(config, scoring, samples or config.score.samples, guidance_scale, seed)
    model = load_base(config, str(checkpoint) if checkpoint else None).to(group.device)
    scored = score(model, scoring, protocol, group)
    result = {"fid": scored.fid, "inception_score": scored.inception_score, "protocol_id": protocol.id}
    print(json.dumps({**result, "protocol": protocol.model_dump()}, indent=1))


if __name__ == "__main__":
    run(main)
