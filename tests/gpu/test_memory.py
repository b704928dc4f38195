"""A trial takes of a card what `placement.memory_gib` says; where there is less, it ends with the same result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fid import features
from benchmarks.gpu.cases import SHALLOW
from benchmarks.gpu.made import Here, Shape, model_of, tokenizer_of, tokens_of
from benchmarks.gpu.training import Figures, TooSmall, batches, memory, said_gib, trial
from cca_ray.cluster.placement import CARDS, GIB, USABLE, accelerator_of, ways
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import TrialReport
from cca_ray.data.tokens import write_token_set
from cca_ray.evaluation import scoring
from cca_ray.evaluation.protocol import SHARD
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.evaluation.scoring import load_base
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.inputs import SPACES, find_space
from cca_ray.models.files import digest_of_weights, write_atomically
from cca_ray.models.official import save_official
from cca_ray.models.parallel import Group, weights_of
from cca_ray.space_file import load_config
from cca_ray.training.checkpoint import Progress, Writer, resume, save_checkpoint
from cca_ray.training.job import Job
from cca_ray.training.loop import fine_tune
from cca_ray.training.out_of_memory import HALVINGS, read_halved, smaller
from cca_ray.training.setup import settings_of
from cca_ray.training.step import train_step
from tests.conftest import MakeStudy
from tests.gpu.places import OnCard, OnCpu, Place

MakeTrial = Callable[..., ResolvedStudy]
OFFICIAL = sorted(path.stem for path in SPACES.glob("*.yaml") if not load_config(path).base.embedded)
LIVE, RUNG = {"reference": "live"}, {"at": 1.0, "samples": 40}


def one_card_rows() -> list[Any]:
    """Of the tables of all official models: a whole model on each card, each micro-batch once. Then shallow ones."""
    found = dict[tuple[str, int | None], Any]()
    for space in OFFICIAL:
        shape = Shape(space)
        for way in ways(shape.shipped.placement):
            if way.strategy == "ddp":
                of = f"{space} x {way.micro_batch}"
                found.setdefault((space, way.micro_batch), pytest.param(shape, accelerator_of(way), id=of))
    return [*found.values(), *(pytest.param(shape, "", id=name) for name, shape in SHALLOW.items())]


def check_figures(figures: Figures) -> None:
    """How near they are is a row of `benchmarks.gpu`."""
    assert figures["training GiB"] <= figures["said GiB"]
    assert figures["scoring GiB"] <= figures["said GiB"]


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("shape", "like"), one_card_rows())
def test_a_row_of_the_tables_takes_what_memory_gib_says(card: OnCard, shape: Shape, like: str):
    """Skipped if this card is smaller than the one whose row it is. Shallow models are as large as fits this card."""
    here, gib = replace(card.here, like=like), torch.cuda.mem_get_info(card.device)[1] / GIB
    try:
        wanted = said_gib(shape, here)
    except TooSmall as error:
        pytest.skip(f"wants a larger GPU: {error}")
    if wanted > USABLE * gib:
        pytest.skip(f"wants a GPU with more than {wanted / USABLE:.0f} GiB")
    check_figures(memory(shape, here))


@pytest.mark.parametrize("space", ["llamagen_b", "llamagen_t2i_xl", "var_d16", "rar_b"])
def test_what_is_measured_of_a_row_is_measured_of_a_tiny_one(space: str):
    """On the CPU the figures are those of the whole process: only that there are some is looked at."""
    figures = memory(Shape(space), OnCpu.here)
    assert all(np.isfinite(value) and value > 0 for value in figures.values())
    assert figures["all GiB"] == max(figures["training GiB"], figures["scoring GiB"])


@pytest.mark.parametrize("part", ["training GiB", "scoring GiB"])
def test_more_than_memory_gib_says_is_noticed(part: str):
    figures = {"training GiB": 30.0, "scoring GiB": 30.0, "said GiB": 30.0}
    check_figures(figures)
    with pytest.raises(AssertionError):
        check_figures({**figures, part: 30.1})


def test_every_official_model_has_a_row():
    """3B is whole on no card of its table: it is measured with four of its layers."""
    rows = [row.values for row in one_card_rows()]
    assert {shape.space for shape, like in rows if like} == set(OFFICIAL) - {"llamagen_3b"}
    assert {way.strategy for way in ways(Shape("llamagen_3b").shipped.placement)} == {"fsdp"}
    assert [shape.model for shape, like in rows if shape.space == "llamagen_3b"] == [{"n_layer": 4}]
    assert {type_ for _, type_ in rows} == {*CARDS, ""}


@pytest.mark.parametrize(("shape", "like"), one_card_rows())
def test_a_row_is_measured_at_its_own_micro_batch_and_fits_its_card(
    shape: Shape, like: str, request: pytest.FixtureRequest
):
    here = Here(torch.device("cuda:0"), like=like or "A100")  # shallow models fit the smallest
    assert 10 < said_gib(shape, here) <= USABLE * CARDS[like or "A100"].memory_gib
    if like:
        assert request.node.callspec.id == f"{shape.space} x {batches(shape, here)[0]}"


def test_a_checkpoint_of_a_large_model_is_written_and_taken_up_again(place: Place):
    """XL, with an EMA: nine gigabytes and more."""
    few = ("train.global_batch=4", "placement.micro_batch=1")
    with trial(Shape("llamagen_xl"), place.here, "train.ema_decay=0.5", *few) as loop:
        train_step(loop, 0)
        path, settings = loop.job.folder / "checkpoint.pt", settings_of(loop)
        with Writer() as writer:
            save_checkpoint(path, loop.model, loop.ema, loop.optimizer, Progress(1), settings, loop.group, writer)
            writer.wait()

        def state() -> list[torch.Tensor]:
            moments = [value for of in loop.optimizer.state.values() for value in of.values()]
            return [
                tensor.clone() for tensor in (*weights_of(loop.model).values(), *(loop.ema or {}).values(), *moments)
            ]

        before = state()
        train_step(loop, 1)
        assert not all(map(torch.equal, before, state()))
        assert resume(path, loop.model, loop.ema, loop.optimizer, settings, loop.objective.logged).step == 1
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


# Memory that runs out.


@pytest.fixture
def make_trial(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> MakeTrial:
    """A study in float32 whose files are there: on the CPU the small base of all tests, on a card GPT-B."""
    if isinstance(place, OnCpu):
        make: MakeStudy = request.getfixturevalue("make_study")
        return lambda **sections: make(family="var", **sections)
    return lambda **sections: gpt_b(place.here, tmp_path, sections)


def gpt_b(here: Here, folder: Path, sections: Mapping[str, Any]) -> ResolvedStudy:
    """With random weights, sixteen images, and a small feature network."""
    shape = Shape("llamagen_b")
    tokenizer, model = tokenizer_of(shape, here.device), model_of(shape, here.device)
    data = tokens_of(model, 16, shape)
    meta = data.meta.model_copy(update={"tokenizer": digest_of_weights(tokenizer)})
    write_token_set(folder / "tokens", [(data.labels, data.tokens)], meta)
    save_official(tokenizer.cpu(), folder / "tokenizer.pt")
    save_official(model.cpu(), folder / "model.pt")
    facts = {"image_size": 256, "num_classes": 1000}
    write_atomically({"model": FeatureNet(**facts).state_dict(), "config": facts}, folder / "features.pt")
    Reference.of(Moments.of(features(200, 0, 64))).save(folder / "reference.npz")
    own = {"placement": {"gpus": 1, "accelerators": [], "precision": "float32"}}
    changes = [
        f"{section}.{key}={json.dumps(value)}" if key else f"{section}={json.dumps(value)}"
        for section, content in {**own, **sections}.items()
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    ]
    config = load_config(find_space(shape.space), changes)
    names = {
        "checkpoint": "model.pt", "tokenizer": "tokenizer.pt", "tokens": "tokens", "features": "features.pt",
        "reference": "reference.npz",
    }  # fmt: skip
    return ResolvedStudy.of(config, {key: str(folder / name) for key, name in names.items()})


def run(config: ResolvedStudy, place: Place, folder: Path) -> list[TrialReport]:
    progress = Progress()
    fine_tune(Job(config, config.train, folder), progress.add, Group(device=place.device))
    return progress.reports


def losses(reports: list[TrialReport]) -> np.ndarray:
    return np.array([row for report in reports for row in report.history])


def fids(reports: list[TrialReport]) -> list[float]:
    return [report.score.values["fid"] for report in reports if report.score]


def test_when_memory_runs_out_in_training_half_the_micro_batch_gives_the_same(
    make_trial: MakeTrial, place: Place, tmp_path: Path
):
    batch = 240 if place.here.dry else 16
    config = make_trial(train={**LIVE, "global_batch": batch}, rungs=[RUNG])
    whole = list[TrialReport]()
    most = place.peak(lambda: whole.extend(run(config, place, tmp_path / "whole")))
    with place.limited(int(0.8 * most)):
        little = run(config, place, tmp_path / "little")
    assert smaller(Job(config, config.train, tmp_path / "whole")).config.placement.micro_batch is None
    assert smaller(Job(config, config.train, tmp_path / "little")).config.placement.micro_batch == batch // 2
    np.testing.assert_allclose(losses(little), losses(whole), rtol=1e-5 if place.here.dry else 1e-3, atol=1e-5)
    np.testing.assert_allclose(fids(little), fids(whole), rtol=1e-4 if place.here.dry else 0.05)


def test_when_memory_runs_out_in_scoring_fewer_images_at_a_time_give_the_same(
    make_trial: MakeTrial, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is trained again, nor with a smaller micro-batch."""
    batch = 24 if place.here.dry else 4
    config = make_trial(train={**LIVE, "global_batch": batch}, rungs=[{"at": 1.0, "samples": SHARD}])
    placement = config.placement.model_copy(update={"micro_batch": batch // 4})
    config, whole = config.model_copy(update={"placement": placement}), list[TrialReport]()
    if place.here.dry:  # else so tiny a model would never have too many images at a time
        monkeypatch.setattr(scoring, "room_for_cache", lambda *_, **__: SHARD * load_base(config).cache_bytes)
        monkeypatch.setattr(scoring, "PIXELS_AT_A_TIME", SHARD * 64)
    most = place.peak(lambda: whole.extend(run(config, place, tmp_path / "whole")))
    with place.limited(int(0.75 * most)):
        little = run(config, place, tmp_path / "little")
    assert not (tmp_path / "little" / "micro_batch").exists()
    np.testing.assert_allclose(losses(little), losses(whole), rtol=1e-5 if place.here.dry else 1e-3, atol=1e-5)
    np.testing.assert_allclose(fids(little), fids(whole), rtol=1e-6 if place.here.dry else 0.05)


def test_memory_that_is_far_too_small_ends_a_trial(make_trial: MakeTrial, place: Place, tmp_path: Path):
    """With an error that says so, after the micro-batch was halved as often as it may be."""
    config = make_trial(train={**LIVE, "global_batch": 240 if place.here.dry else 16}, rungs=[RUNG])
    most = place.peak(lambda: run(config, place, tmp_path / "whole"))
    with place.limited(int(0.15 * most)), pytest.raises(torch.OutOfMemoryError):
        run(config, place, tmp_path / "little")
    assert read_halved(tmp_path / "little" / "micro_batch").halvings == HALVINGS
