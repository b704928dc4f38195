"""One fine-tuning, outside a search.

cca-ray train digits_s --lambda 3 --lr 5e-3
cca-ray train my_s.yaml --set train.objective=finetune --out runs/plain     the same folder resumes it
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.util.queue import Empty, Queue

from cca_ray.cluster.placement import in_this_process
from cca_ray.cluster.queue import first_way
from cca_ray.config import Train
from cca_ray.contracts import RungScore, TrialReport
from cca_ray.errors import ConfigError
from cca_ray.inputs import DEFAULT_SPACES, find_space
from cca_ray.space_file import as_settings, load_config
from cca_ray.storage.mirror import reach
from cca_ray.storage.uris import to_uri
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import Console, SpaceArgument, StorageOption, place, run
from cca_ray.terminal.ray_session import ray_session
from cca_ray.training.failures import innermost
from cca_ray.training.group import REPORT_S, Forward, build_trainer
from cca_ray.training.job import Job
from cca_ray.training.reports import TrialFailure, from_ray
from cca_ray.training.small_base import check_files, resolve

LAST_S = 10.0  # that the last reports have to arrive
SHORT = {"reward_margin": "margin"}


def describe(report: TrialReport) -> str:
    """A report as a line."""
    text = f"step {report.step}/{report.total_steps}"
    if report.history:
        for name, value in zip(report.logged, report.history[-1][1:], strict=True):
            text += f"  {SHORT.get(name, name.replace('_', ' '))} {value:{'.4f' if name == 'loss' else '.2f'}}"
        text += f"  {report.images_per_second:.0f} images/s"
    if report.score:
        metric, value = next(iter(report.score.values.items()))
        text += f"  {metric} {value:.2f} ({report.score.samples} samples)"
    return text


def fine_tune(job: Job, say: Callable[[TrialReport], None]) -> None:
    """In this process or, by Ray, in a group of workers. Whatever ends it early is raised."""
    if in_this_process(job.config.placement):
        logging.getLogger("ray").setLevel(logging.ERROR)  # Ray Train would tell that it starts no Ray
        build_trainer(job, say).fit()
        return

    failures: list[str] = []

    def hear(result: Mapping[str, str]) -> None:
        report = from_ray(result)
        if isinstance(report, TrialFailure):
            failures.append(report.reason)
        else:
            say(report)

    with ray_session():
        job = replace(job, config=job.config.model_copy(update={"placement": first_way(job.config.placement)}))
        queue = Queue(actor_options={"num_cpus": 0})
        try:
            with hearing(queue, hear):
                build_trainer(job, say, [Forward(queue)]).fit()
        except TrainingFailedError as error:
            raise innermost(error) from None
    if failures:
        raise ConfigError(failures[0])


@contextmanager
def hearing(queue: Queue, hear: Callable[[Mapping[str, str]], None]) -> Iterator[None]:
    """Meanwhile a thread hands on what comes by the queue, in the end all of it. The main one is free for signals."""
    over = threading.Event()

    def listen() -> None:
        with suppress(RayError):  # that Ray has ended is told by others
            while not over.is_set() or not queue.empty():
                with suppress(Empty):
                    hear(queue.get(timeout=REPORT_S))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LAST_S)


def folder_name(name: str, train: Train) -> str:
    """Of a run, by what is most often varied."""
    kind = f"lambda{weight:g}" if (weight := train.model_dump().get("lambda")) else train.objective
    return f"{name}-{kind}-lr{train.learning_rate:g}"


@dataclass(frozen=True)
class FineTuned:
    """What one fine-tuning left: its folder, its weights in the official format, its scores at the rungs."""

    folder: Path
    weights: Path
    scores: tuple[RungScore, ...]


@in_python
def train(
    space: str | Path = DEFAULT_SPACES[0],
    lambda_: float | None = None,
    lr: float | None = None,
    storage: str | Path = "runs",
    out: str | Path | None = None,
    settings: Mapping[str, object] | Sequence[str] = (),
    *,
    quiet: bool = False,
) -> FineTuned:
    """Fine-tune once, outside a search, and score at the rungs.

    `space`: a search space's file, or the name of a shipped one. `lambda_`, `lr`: the weight λ of the negative term and
    the learning rate; by default `train.lambda` and `train.learning_rate`. `out`: the folder or URI of this run, by
    default in the storage; what was interrupted there is resumed. `settings` override the search space, as in
    `{"train.epochs": 2}`.
    """
    own = {"train.lambda": lambda_, "train.learning_rate": lr}
    changes = [f"{key}={value}" for key, value in own.items() if value is not None]
    config = load_config(find_space(str(space)), [*as_settings(settings), *changes])
    console, storage, scores = Console(quiet=quiet), Path(storage), dict[int, RungScore]()
    check_files(config)
    reach(storage if out is None else Path(out), write=True)
    config = resolve(config, storage, console.progress)
    folder = storage / "train" / folder_name(config.name, config.train) if out is None else Path(out)

    def hear(report: TrialReport) -> None:
        console.say(describe(report))
        if report.score:
            scores[report.step] = report.score

    with console.during("training"):
        fine_tune(Job(config, config.train, folder.resolve()), hear)
    console.say(f"weights: {to_uri(folder / 'model.pt')}")
    return FineTuned(folder, folder / "model.pt", tuple(scores.values()))


def main(
    space: SpaceArgument = DEFAULT_SPACES[0],
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Weight λ of the negative term.", show_default="train.lambda")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.", show_default="train.learning_rate")] = None,
    storage: StorageOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="PATH", help="Folder or URI of this run; an interrupted run in it is resumed."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as train.epochs=2; repeatable.")
    ] = None,
) -> None:
    """Fine-tune once and score at the rungs."""
    train(space, lambda_, lr, storage, out, set_ or [])


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
