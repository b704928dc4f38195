"""One fine-tuning, outside a search.

cca-ray train digits_s --lambda 3 --lr 5e-3
cca-ray train my_s.yaml --set train.objective=finetune --out runs/plain     the same folder resumes it
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from ray.train import UserCallback

from cca_ray.cluster.placement import in_this_process
from cca_ray.cluster.queue import first_way
from cca_ray.cluster.session import start_ray
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import reach
from cca_ray.storage.uris import named
from cca_ray.terminal.console import Console, SpaceArgument, place, run
from cca_ray.training.job import Job
from cca_ray.training.small_base import check_files, resolve
from cca_ray.training.trial import FAILURE, build_trainer


def describe(report: dict[str, Any]) -> str:
    """A report as a line."""
    if FAILURE in report:
        return f"FAILED: {report[FAILURE]}"
    text = f"step {report['step']}/{report['total_steps']}"
    if report["history"]:
        _, loss, accuracy, margin = report["history"][-1]
        text += f"  loss {loss:.4f}  reward accuracy {accuracy:.2f}  margin {margin:.2f}"
        text += f"  {report['images_per_second']:.0f} images/s"
    if "fid" in report:
        text += f"  fid {report['fid']:.2f} ({report['samples']} samples)"
    return text


class PrintReports(UserCallback):
    """For a worker group, whose controller is another process: Ray brings its output here."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        print(describe(metrics[0]), flush=True)


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    lambda_: Annotated[float | None, typer.Option("--lambda", help="Weight of the negative term.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    storage: Annotated[
        Path, typer.Option(parser=place, metavar="PATH", help="Folder or URI for bases and results.")
    ] = Path("runs"),
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
    train = config.train
    folder = out or storage / "train" / f"{config.name}-lambda{train.lambda_:g}-lr{train.learning_rate:g}"
    if not in_this_process(config.placement):
        start_ray(show_workers=True)
        config = config.model_copy(update={"placement": first_way(config.placement)})
    job = Job(config, train, folder.resolve())
    build_trainer(job, lambda report: console.say(describe(report)), [PrintReports()]).fit()
    console.say(f"weights: {named(folder / 'model.pt')}")


if __name__ == "__main__":
    run(main)
