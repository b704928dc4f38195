"""Search λ and learning rate for CCA, size after size.

python -m cca_ray.tune                          the embedded default: two sizes of LlamaGen on digits
python -m cca_ray.tune my_s.yaml my_m.yaml      your own search spaces, in this order
"""

import re
import shutil
from pathlib import Path
from typing import Annotated

import ray
import typer
import yaml

from cca_ray.config import ConfigError, StudyConfig, load_config
from cca_ray.console import DEFAULT_SPACES, Console, alone, find_space, run
from cca_ray.placement import micro_batch_size
from cca_ray.pretrain import check_files, resolve
from cca_ray.report import picture, table, verdict, write_summary
from cca_ray.search import SizeResult, run_size, start_ray
from cca_ray.tracking import Tracker


def load_spaces(spaces: list[str], settings: list[str]) -> list[StudyConfig]:
    configs = [load_config(find_space(space), settings) for space in spaces or DEFAULT_SPACES]
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two search spaces have the same name: {', '.join(names)}")
    for config in configs:
        micro_batch_size(config.placement, config.train.global_batch)
        check_files(config)
    return configs


def show(configs: list[StudyConfig]) -> None:
    """The studies as they would run, every default filled in."""
    print(yaml.safe_dump_all([c.model_dump(mode="json", by_alias=True) for c in configs], sort_keys=False))


def finish_size(result: SizeResult, folder: Path, tracker: Tracker) -> None:
    """Keep the winner and the picture of one size, in the study's folder and in MLflow."""
    size = result.summary
    folder.mkdir(parents=True, exist_ok=True)
    winner = folder / "winner.pt"
    shutil.copyfile(size["checkpoint"], winner)
    size["checkpoint"] = str(winner)
    tracker.file(size["mlflow_run_id"], picture(folder / "samples.png", size, result.images))
    tracker.file(size["mlflow_run_id"], winner)


def main(
    spaces: Annotated[list[str] | None, typer.Argument(help="Search-space files, or names of shipped ones.")] = None,
    name: Annotated[str, typer.Option(help="Name of the study; the same name continues it.")] = "",
    storage: Annotated[Path, typer.Option(help="Folder for everything that a study leaves.")] = Path("runs"),
    tracking_uri: Annotated[
        str, typer.Option(help="MLflow server or database; by default a SQLite file in the storage.")
    ] = "",
    trials: Annotated[int | None, typer.Option(min=1, help="Trials a size.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the search, the data order and the noise.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as train.beta=0.05; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved study and stop.")] = False,
) -> None:
    """Search λ and learning rate for CCA, size after size."""
    settings = list(set_ or [])
    settings += [f"search.trials={trials}"] if trials is not None else []
    settings += [f"search.max_concurrent={max_concurrent}"] if max_concurrent is not None else []
    if seed is not None:
        # Far apart, so that the noise of one study (seed, seed + 1, seed + 2) is never that of another.
        settings += [f"search.seed={seed}", f"train.seed={seed}", f"score.seed={1000 * seed}"]
    configs = load_spaces(spaces or [], settings)
    if dry_run:
        show(configs)
        return
    console = Console()
    if not name:
        name = "-".join(config.name for config in configs) if spaces else "digits"
        name += f"-seed{seed}" if seed else ""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--name {name}: letters, digits, '.', '_' and '-' only")
    storage = storage.resolve()  # trials run in directories of their own
    folder = storage / name
    folder.mkdir(parents=True, exist_ok=True)
    console.say(f"study {name}: {', '.join(c.name for c in configs)}; everything goes to {folder}")
    uri = tracking_uri or f"sqlite:///{storage / 'mlflow.db'}"
    console.say(f"opening MLflow at {uri}")
    families = dict.fromkeys(config.base.family for config in configs)
    trackers = {family: Tracker(uri, f"cca_ray {family}", storage / "mlartifacts") for family in families}
    sizes = []
    with alone(folder):
        try:
            console.say("starting Ray")
            start_ray()
            for config in configs:
                tracker = trackers[config.base.family]
                result = run_size(resolve(config, storage, console.progress), name, folder, tracker, console.say)
                finish_size(result, folder / config.name, tracker)
                sizes.append(result.summary)
                summary = write_summary(folder, sizes)
                console.say(verdict(result.summary))
        finally:
            ray.shutdown()
    print(f"\nFID on fresh noise, {configs[-1].score.samples:,} samples\n{table(sizes)}\n")
    where = {size["size"]: f"{Path(size['checkpoint']).parent}: winner.pt, samples.png" for size in sizes}
    width = max(map(len, ["summary", *where]))
    for what, path in {"summary": summary, **where, "browse": tracker.browse}.items():
        print(f"{what:{width}}  {path}")


if __name__ == "__main__":
    run(main)
