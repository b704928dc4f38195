"""Score a checkpoint, or images in an `.npz`, under a study's protocol; prints JSON.

FID, sFID, inception score, precision and recall, as the ADM evaluator computes them, and every other metric that there
is.  What the files do not allow is null: sFID wants `mu_s` and a network with spatial features, KID, precision and
recall want features of real images in the reference, or these images (`arr_0`).

cca-ray evaluate digits_s --checkpoint runs/digits/digits_s/winner.pt
cca-ray evaluate digits_s --samples 1800 --guidance-scale 1.5     the base, with guidance
cca-ray evaluate llamagen_b --npz all.npz                         images that something else has made
cca-ray evaluate llamagen_b --verify runs/imagenet                the study's winner again, on this machine's card
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cca_ray.config import MOST_SEED, ResolvedStudy
from cca_ray.errors import ConfigError
from cca_ray.evaluation import measure
from cca_ray.evaluation.measure import Evaluation
from cca_ray.inputs import DEFAULT_SPACES, find_space, refuse_missing
from cca_ray.reporting.results import read_study
from cca_ray.search.verifying import Verification
from cca_ray.search.verifying import verify as verify_trial
from cca_ray.space_file import as_settings, load_config
from cca_ray.storage.uris import local_path
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import CheckpointOption, Console, GuidanceOption, SpaceArgument, StorageOption, place, run
from cca_ray.training.small_base import check_files, resolve


def resolved(
    space: str | Path, storage: str | Path, settings: Mapping[str, object] | Sequence[str], console: Console
) -> ResolvedStudy:
    """The search space with all its files, which are made if they are the digits'."""
    config = load_config(find_space(str(space)), as_settings(settings))
    check_files(config)
    return resolve(config, Path(storage), console.progress)


@in_python
def evaluate(
    space: str | Path = DEFAULT_SPACES[0],
    checkpoint: str | Path | None = None,
    npz: str | Path | None = None,
    samples: int | None = None,
    guidance_scale: float = 1.0,
    seed: int | None = None,
    storage: str | Path = "runs",
    settings: Mapping[str, object] | Sequence[str] = (),
    *,
    quiet: bool = False,
) -> Evaluation:
    """Score a checkpoint (by default the base), or the images in an `.npz`, by every metric that the files allow.

    `space`: a search space's file, or the name of a shipped one, which says under which protocol. `samples`, `seed`:
    how many images are sampled, with which noise; by default `score.samples` and `score.seed`.
    """
    if checkpoint is not None and npz is not None:
        raise ConfigError("--checkpoint and --npz: give one of them")
    if npz is not None:
        refuse_sampling(samples, seed, guidance_scale, "--npz has all images that are scored")
    refuse_missing(checkpoint)
    refuse_missing(npz)
    console = Console(sys.stderr, quiet)
    config = resolved(space, storage, settings, console)
    weights, images = (None if path is None else Path(path) for path in (checkpoint, npz))
    with console.during("scoring" if npz else "sampling and scoring"):
        return measure.evaluate(config, weights, images, samples, guidance_scale, seed)


@in_python
def verify(
    study: str | Path,
    space: str | Path = DEFAULT_SPACES[0],
    trial: int | None = None,
    storage: str | Path = "runs",
    settings: Mapping[str, object] | Sequence[str] = (),
    *,
    quiet: bool = False,
) -> Verification:
    """Score the winner of the study in this folder again, or the finalist `trial`, on the noise of its table.

    The difference from what the study has kept tells whether this machine's card scores alike.
    """
    console = Console(sys.stderr, quiet)
    config = resolved(space, storage, settings, console)
    with console.during("scoring a finalist again"):
        return verified(config, local_path(study), trial)


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    checkpoint: CheckpointOption = None,
    npz: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Score these images instead: arr_0, uint8, NHWC.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Number of images to sample.", show_default="score.samples")
    ] = None,
    guidance_scale: GuidanceOption = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of the noise.", show_default="score.seed")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="STUDY",
            help="Score the winner of the study in this folder again, on the noise of its table, and compare.",
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, help="With --verify: the number of a finalist to score instead of the winner.")
    ] = None,
    storage: StorageOption = Path("runs"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as score.top_k=100; repeatable.")
    ] = None,
) -> None:
    """Score a checkpoint or an .npz of images."""
    given = {"--checkpoint": checkpoint, "--npz": npz, "--verify": verify}
    if len(several := [option for option, value in given.items() if value is not None]) > 1:
        raise ConfigError(f"{' and '.join(several)}: give one of them")
    if trial is not None and verify is None:
        raise ConfigError("--trial: names a finalist of a study; give --verify, too")
    if verify is not None:
        refuse_sampling(samples, seed, guidance_scale, "--verify always scores as the study did")
        console = Console(sys.stderr)
        config = resolved(space, storage, set_ or [], console)
        with console.during("scoring a finalist again"):
            found_again = verified(config, verify, trial)
        tell_verified(found_again, verify)
        return
    found = evaluate(space, checkpoint, npz, samples, guidance_scale, seed, storage, set_ or [])
    protocol = found.protocol
    if found.given:
        made_of = protocol.model_dump(include={"extractor", "reference", "samples"})
    else:
        made_of = {"protocol_id": protocol.id, "protocol": protocol.model_dump()}
    print(json.dumps({**found.values, **made_of}, indent=1))


def refuse_sampling(samples: int | None, seed: int | None, guidance_scale: float, why: str) -> None:
    """ConfigError if one of these is given where it would change nothing."""
    for option, given in (
        ("--samples", samples is not None), ("--seed", seed is not None), ("--guidance-scale", guidance_scale != 1)
    ):  # fmt: skip
        if given:
            raise ConfigError(f"{option}: {why}")


def verified(config: ResolvedStudy, folder: Path, number: int | None) -> Verification:
    """A finalist of the study in this folder (None: the winner) scored again here. ConfigError if it has none such."""
    study = read_study(folder.parent, folder.name)
    found = next((size for size in study.sizes if size.name == config.name), None)
    if found is None or found.summary is None:
        raise ConfigError(f"{folder}: no final comparison of {config.name} yet; continue that study first")
    size, finalists = found.summary, {finalist.trial for finalist in found.summary.finalists}
    if number is not None and number not in finalists:
        raise ConfigError(f"{folder}: trial {number} was not in the final comparison; {sorted(finalists)} were")
    wanted = size.winner.trial if number is None else number
    (chosen,) = (row.frozen for row in found.of("search") if row.number == wanted)
    return verify_trial(config, study.folder, chosen, found.id, size.headline)


def tell_verified(found: Verification, folder: Path) -> None:
    """JSON on stdout. Exit code 1 and a line if the difference is more than the noise of sampling explains."""
    low, high = found.difference.interval()
    told = {"trial": found.trial, "metric": found.metric, "card": found.card, "blocks": list(map(asdict, found.blocks))}
    told |= {"difference": found.difference.value, "low": low, "high": high, "std": found.std}
    print(json.dumps({**told, "explained_by_noise": found.explained}, indent=1))
    if not found.explained:
        print(
            f"error: {folder}: {found.metric} of trial {found.trial} differs here by {found.difference.value:+.2f} "
            f"({low:+.2f} to {high:+.2f}), more than the noise of sampling explains: do not compare "
            "scores from these cards",
            file=sys.stderr,
        )
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
