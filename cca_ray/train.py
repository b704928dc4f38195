"""One fine-tuning, outside a search.

cca-ray train digits_s --lambda 3 --lr 5e-3
cca-ray train my_s.yaml --set train.objective=finetune --out runs/plain     the same folder resumes it
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from ray.train import UserCallback

from cca_ray.cluster.placement import in_this_process
from cca_ray.cluster.queue import first_way
from cca_ray.cluster.session import start_ray
from cca_ray.config import Train
from cca_ray.contracts import TrialReport
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import reach
from cca_ray.storage.uris import to_uri
from cca_ray.terminal.console import Console, SpaceArgument, StorageOption, place, run
from cca_ray.training.group import build_trainer
from cca_ray.training.job import Job
from cca_ray.training.reports import TrialFailure, from_ray
from cca_ray.training.small_base import check_files, resolve

SHORT = {"reward_margin": "margin"}


def describe(report: TrialReport | TrialFailure) -> str:
    """A report as a line."""
    if isinstance(report, TrialFailure):
        return f"FAILED: {report.reason}"
    text = f"step {report.step}/{report.total_steps}"
    if report.history:
        for name, value in zip(report.logged, report.history[-1][1:], strict=True):
            text += f"  {SHORT.get(name, name.replace('_', ' '))} {value:{'.4f' if name == 'loss' else '.2f'}}"
        text += f"  {report.images_per_second:.0f} images/s"
    if report.score:
        metric, value = next(iter(report.score.values.items()))
        text += f"  {metric} {value:.2f} ({report.score.samples} samples)"
    return text


class PrintReports(UserCallback):
    """For a worker group, whose controller is another process: Ray brings its output here."""

    def after_report(self, run_context: Any, metrics: list[Mapping[str, str]], checkpoint: Any) -> None:
        print(describe(from_ray(metrics[0])), flush=True)


def folder_name(name: str, train: Train) -> str:
    """Of a run, by what is most often varied."""
    kind = f"lambda{weight:g}" if (weight := train.model_dump().get("lambda")) else train.objective
    return f"{name}-{kind}-lr{train.learning_rate:g}"


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    lambda_: Annotated[float | None, typer.Option("--lambda", help="Weight of the negative term.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    storage: StorageOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Folder or URI of this run; the same one resumes it."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as train.epochs=2; repeatable.")
    ] = None,
) -> None:
    """Fine-tune once and score at the rungs."""
    settings = list(set_ or [])
    settings += [f"train.lambda={lambda_}"] if lambda_ is not None else []
    settings += [f"train.learning_rate={lr}"] if lr is not None else []
    config, console = load_config(find_space(space), settings), Console()
    check_files(config)
    reach(out or storage, write=True)
    config = resolve(config, storage, console.progress)
    folder = out or storage / "train" / folder_name(config.name, config.train)
    if not in_this_process(config.placement):
        start_ray(show_workers=True)
        config = config.model_copy(update={"placement": first_way(config.placement)})
    job = Job(config, config.train, folder.resolve())
    build_trainer(job, lambda report: console.say(describe(report)), [PrintReports()]).fit()
    console.say(f"weights: {to_uri(folder / 'model.pt')}")


if __name__ == "__main__":
    run(main)
