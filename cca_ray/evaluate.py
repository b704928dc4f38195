"""Score a checkpoint, or images in an `.npz`, under a study's protocol; prints JSON.

FID, sFID, inception score, precision and recall, as the ADM evaluator computes them.  What the files do not allow
is null: sFID wants `mu_s` and a network with spatial features, precision and recall want the reference's images
(`arr_0`).

cca-ray evaluate digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray evaluate digits_s --samples 1800 --guidance-scale 1.5     the base, with guidance
cca-ray evaluate llamagen_b --npz all.npz                         images that something else has made
"""

import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import Extractor, extract
from cca_ray.evaluation.metrics import (
    SHARD,
    Moments,
    divergences,
    frechet_distance,
    frechet_distance_few,
    inception_score,
    merge_all,
    precision_recall,
)
from cca_ray.evaluation.scoring import Scoring, load_base, protocol_of, sample_shards, scoring_of
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.space_file import load_config
from cca_ray.terminal.console import CheckpointOption, Console, SpaceArgument, place, run
from cca_ray.training.small_base import check_files, resolve


def open_images(path: Path, size: int | None = None) -> tuple[int, Iterator[np.ndarray]]:
    """How many images an `.npz` holds in `arr_0`, and these, [n, H, W, 3] uint8, `SHARD` at a time.

    ConfigError, naming the file, if there is no such array or, where `size` is given, of other pixels.
    """
    try:
        file = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 (read by the iterator that is returned)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: not an .npz with arr_0 ({error})") from None
    side = size or "S"
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and shape[1] == (size or shape[1])
    if dtype != np.uint8 or fortran or not square or shape[0] < 2:
        raise ConfigError(f"{path}: arr_0 is {dtype} {list(shape)}; want uint8 [N, {side}, {side}, 3], N at least 2")

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, shape[0], SHARD):
            count = min(SHARD, shape[0] - start) * shape[1] * shape[2] * 3
            content = file.read(count)
            if len(content) < count:
                raise ConfigError(f"{path}: ends after {start} of {shape[0]} images")
            yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])

    return shape[0], batches()


def on_device(batches: Iterable[np.ndarray], device: torch.device) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(batch.copy()).to(device) for batch in batches)


def pooled_features(extractor: Extractor, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """[N, D] float32."""
    return np.concatenate([extract(extractor, batch).pooled.cpu().numpy() for batch in batches])


def reference_images(path: str) -> Iterator[np.ndarray] | None:
    """Those of an ADM reference file, if it has them; a bad array is told before anything is sampled."""
    return open_images(Path(path))[1] if "arr_0.npy" in zipfile.ZipFile(path).namelist() else None


def measure(
    batches: Iterable[torch.Tensor],
    count: int,
    scoring: Scoring,
    real: Iterator[np.ndarray] | None,
    device: torch.device,
    permute: bool,
) -> dict[str, float | None]:
    """All metrics of `count` images. `permute`: mix them before the inception score cuts them into blocks."""
    order = np.random.default_rng(0).permutation(count) if permute else np.arange(count)
    pooled, parts, seen = [], [], 0
    spatial: Moments | None = None
    for batch in batches:
        features = extract(scoring.extractor, batch)
        pooled.append(features.pooled.cpu().numpy())
        if features.spatial is not None and scoring.reference.spatial is not None:
            more = Moments.of(features.spatial.cpu().numpy())
            spatial = spatial.merge(more) if spatial else more
        parts.append(divergences(features.probabilities.cpu().numpy(), order[seen : seen + len(batch)]))
        seen += len(batch)
    made, wanted = np.concatenate(pooled), scoring.reference
    if count < len(wanted.mean):
        fid = frechet_distance_few(made, wanted)
    else:
        fid = frechet_distance(merge_all(Moments.of(made[i : i + SHARD]) for i in range(0, count, SHARD)), wanted)
    result: dict[str, float | None] = {
        "fid": fid,
        "sfid": frechet_distance(spatial, wanted.spatial) if spatial and wanted.spatial else None,
        "inception_score": inception_score(parts),
        "precision": None,
        "recall": None,
    }
    if real is not None:
        real_features = pooled_features(scoring.extractor, on_device(real, device))
        result["precision"], result["recall"] = precision_recall(real_features, made, device)
    return result


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    checkpoint: CheckpointOption = None,
    npz: Annotated[Path | None, typer.Option(help="Score these images instead: arr_0, uint8 NHWC.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Images to sample; by default score.samples.")] = None,
    guidance_scale: Annotated[float, typer.Option(min=0, help="1: guidance-free.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; by default score.seed.")] = None,
    storage: Annotated[
        Path, typer.Option(parser=place, metavar="PATH", help="Folder or URI of the bases, as of `tune`.")
    ] = Path("runs"),
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
    group = Group()
    scoring = scoring_of(config, group.device)
    real = reference_images(config.score.reference)
    protocol = protocol_of(config, scoring, samples or config.score.samples, guidance_scale, seed)
    if npz is not None:
        count, batches = open_images(npz, protocol.image_size)
        given = {"extractor": scoring.extractor.digest, "reference": scoring.reference.digest, "samples": count}
        measured = measure(on_device(batches, group.device), count, scoring, real, group.device, permute=True)
        print(json.dumps({**measured, **given}, indent=1))
        return
    model = for_sampling(load_base(config, str(checkpoint) if checkpoint else None), config.placement, group)
    images = (images for _, images, _ in sample_shards(model, scoring, protocol, group))
    result = measure(images, protocol.samples, scoring, real, group.device, permute=False)
    print(json.dumps({**result, "protocol_id": protocol.id, "protocol": protocol.model_dump()}, indent=1))


if __name__ == "__main__":
    run(main)
