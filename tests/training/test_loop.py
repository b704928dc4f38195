import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.utils import counters

from cca_ray.cluster.placement import micro_batch_size
from cca_ray.cluster.stopping import Stop
from cca_ray.config import StudyConfig
from cca_ray.contracts import RungScore, Strict, TrialReport
from cca_ray.errors import Stuck
from cca_ray.evaluation import scoring as scoring_module
from cca_ray.evaluation.features import extract
from cca_ray.evaluation.fid import frechet_distance
from cca_ray.evaluation.reference import Moments
from cca_ray.evaluation.sampler import CACHE_BYTES, PIXELS_AT_A_TIME
from cca_ray.evaluation.scoring import load_base, load_tokens, protocol_of, sample_shards, score, scoring_of
from cca_ray.evaluation.thrift import NoRoom
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import load_official
from cca_ray.models.parallel import Group
from cca_ray.registry import OBJECTIVES
from cca_ray.search.shared_files import reference_table
from cca_ray.storage.mirror import patiently
from cca_ray.training import loop as loop_module
from cca_ray.training.checkpoint import Progress
from cca_ray.training.group import build_trainer
from cca_ray.training.heartbeat import stop_sign
from cca_ray.training.job import Job
from cca_ray.training.loop import card_here, fine_tune
from cca_ray.training.objectives import Objective, ScoredPairs
from cca_ray.training.out_of_memory import shrink, smaller
from cca_ray.training.setup import Loop, prepare
from cca_ray.training.step import Diverged
from tests.conftest import MakeStudy

LIVE = {"reference": "live"}


def run(config: StudyConfig, folder: Path, table: Path | None = None, **values: Any) -> list[TrialReport]:
    """One fine-tuning in this process; its reports at the rungs, with what slow steps reported between them."""
    progress = Progress()
    fine_tune(Job(config, config.train_with(values), folder, table), progress.add, Group())
    return progress.reports


def kept(folder: Path) -> list[TrialReport]:
    """What a trial's checkpoint has of its reports."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return [TrialReport.model_validate(report) for report in content["reports"]]


def score_at(report: TrialReport) -> RungScore:
    assert report.score is not None
    return report.score


def fids(reports: list[TrialReport]) -> list[float]:
    return [score_at(report).values["fid"] for report in reports]


def losses(reports: list[TrialReport]) -> np.ndarray:
    """[steps, 4]: step, loss, reward accuracy, reward margin."""
    return np.array([row for report in reports for row in report.history])


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load_official("llamagen", "S", folder / "model.pt").state_dict().values())


@pytest.fixture(scope="module")
def whole(base_files, tmp_path_factory: pytest.TempPathFactory):
    """The undisturbed run that others are compared with: one worker, micro-batch 8 of global batch 8."""
    from cca_ray.space_file import parse
    from cca_ray.training.small_base import with_files
    from tests.conftest import tiny_space

    content = tiny_space()
    content["train"] |= {"global_batch": 8, "dropout": 0.1, **LIVE}
    config = with_files(parse(content, "tiny", "tiny.yaml"), base_files)
    folder = tmp_path_factory.mktemp("whole")
    return config, folder, run(config, folder)


def placed(config: StudyConfig, **placement: Any) -> StudyConfig:
    return config.model_copy(update={"placement": config.placement.model_copy(update=placement)})


def assert_same_run(folder: Path, reports: list[TrialReport], whole) -> None:
    _, whole_folder, whole_reports = whole
    np.testing.assert_allclose(losses(reports), losses(whole_reports), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fids(reports), fids(whole_reports), rtol=1e-4)
    for ours, theirs in zip(weights(folder), weights(whole_folder), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    for report, other in zip(reports, whole_reports, strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(score_at(report).grid)), np.asarray(Image.open(score_at(other).grid))
        )


def test_only_the_model_that_is_trained_is_in_training_mode(make_study: MakeStudy, tmp_path: Path):
    """A plug-in may have layers for which that makes a difference."""
    config = make_study(train=LIVE)
    loop = prepare(Job(config, config.train, tmp_path), Group())
    assert loop.frozen is not None
    networks = loop.model, loop.frozen.get_submodule("model"), loop.scored_model(), loop.scoring.tokenizer
    assert [network.training for network in networks] == [True, False, False, False]


def test_accumulation_changes_no_result(whole, tmp_path: Path):
    reports = run(placed(whole[0], micro_batch=4), tmp_path)
    assert_same_run(tmp_path, reports, whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_change_no_result(whole, tmp_path: Path, ray_here: None, strategy: str):
    recompute = strategy == "fsdp"
    config = placed(whole[0], workers=2, micro_batch=2, strategy=strategy, activation_checkpointing=recompute)
    build_trainer(Job(config, config.train, tmp_path), print).fit()
    reports = kept(tmp_path)
    assert_same_run(tmp_path, reports, whole)


def test_recomputed_activations_change_no_result(whole, tmp_path: Path):
    assert_same_run(tmp_path, run(placed(whole[0], activation_checkpointing=True), tmp_path), whole)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: apt-get install g++")
@pytest.mark.timeout(600)  # most of it the C++ compiler's
def test_compiled_blocks_change_no_result(whole, tmp_path: Path):
    """With dropout, as all files of LlamaGen have it; by one program for all blocks, that which was tried before."""
    torch.compiler.reset()
    counters.clear()
    assert_same_run(tmp_path, run(placed(whole[0], compile=True, activation_checkpointing=True), tmp_path), whole)
    assert counters["stats"]["unique_graphs"] == 2  # with dropout, and of the frozen model without


def test_var_gives_the_same_whatever_the_micro_batch(make_study: MakeStudy, tmp_path: Path):
    config = make_study(family="var", train={**LIVE, "dropout": 0.1})
    one = run(config, tmp_path / "a")
    cut = run(placed(config, micro_batch=6, activation_checkpointing=True), tmp_path / "b")
    np.testing.assert_allclose(losses(cut), losses(one), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fids(cut), fids(one), rtol=1e-4)
    made = load_official("var", "M", tmp_path / "a" / "model.pt", config.base.tokenizer)
    assert any(not torch.equal(a, b) for a, b in zip(made.parameters(), load_base(config).parameters(), strict=True))


def test_rar_gives_the_same_whatever_the_micro_batch_and_the_order(make_study: MakeStudy, tmp_path: Path):
    """With tokens in an order of each image's own, the losses are others; how they are cut changes none of them."""
    train, rungs = {**LIVE, "dropout": 0.1, "epochs": 1}, [{"at": 1.0, "samples": 20}]
    raster = run(make_study(family="rar", train=train, rungs=rungs), tmp_path / "a")
    config = make_study(family="rar", train=train, rungs=rungs, data={"order": "random"})
    one = run(config, tmp_path / "b")
    cut = run(placed(config, micro_batch=6, activation_checkpointing=True), tmp_path / "c")
    np.testing.assert_allclose(losses(cut), losses(one), rtol=1e-5, atol=1e-5)
    assert not np.allclose(losses(raster), losses(one), rtol=1e-4)
    assert score_at(raster[-1]).protocol == score_at(one[-1]).protocol  # in raster order both are sampled


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_var_gives_the_same_on_two_workers(make_study: MakeStudy, tmp_path: Path, ray_here: None, strategy: str):
    config = make_study(family="var", train=LIVE)
    one = run(config, tmp_path / "a")
    two = placed(config, workers=2, micro_batch=6, strategy=strategy)
    build_trainer(Job(two, two.train, tmp_path / "b"), print).fit()
    reports = kept(tmp_path / "b")
    np.testing.assert_allclose(losses(reports), losses(one), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fids(reports), fids(one), rtol=1e-4)


def test_dropout_does_not_depend_on_the_micro_batch(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train={**LIVE, "dropout": 0.2})
    one, cut = run(config, tmp_path / "a"), run(placed(config, micro_batch=6), tmp_path / "b")
    np.testing.assert_allclose(losses(cut), losses(one), rtol=1e-5, atol=1e-5)
    assert not np.allclose(losses(one), losses(run(make_study(train=LIVE), tmp_path / "c")), rtol=1e-3)


def test_a_run_reports_steps_scores_and_pictures(whole):
    config, folder, reports = whole
    assert [report.step for report in reports] == [15, 30]
    assert [score_at(report).samples for report in reports] == [60, 80]
    assert losses(reports)[:, 0].tolist() == list(range(1, 31))
    assert all(np.isfinite(fids(reports)))
    assert all(score_at(report).values["inception_score"] >= 1 for report in reports)
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}
    assert all(names <= set(report.load) for report in reports)
    assert all(report.gpu_memory_gib is None for report in reports)
    assert all(Path(score_at(report).grid).is_file() for report in reports)
    assert (folder / "model.pt").is_file()
    assert config.train.reference == "live"


def test_training_lowers_the_loss_and_raises_the_reward(make_study: MakeStudy, tmp_path: Path):
    reports = run(make_study(train={**LIVE, "epochs": 6, "learning_rate": 3e-3}), tmp_path)
    history = losses(reports)
    first, last = history[:10].mean(0), history[-10:].mean(0)
    assert last[1] < first[1]
    assert last[2] > first[2]
    assert last[3] > first[3]


@pytest.mark.parametrize("objective", ["dpo", "unlearning", "finetune"])
def test_every_objective_runs(make_study: MakeStudy, tmp_path: Path, objective: str):
    reports = run(make_study(train=LIVE), tmp_path, objective=objective)
    assert len(reports) == 2
    assert ("reward_margin" in reports[0].rows()[1]) == (objective != "finetune")


class NoParameters(Strict):
    pass


def likelihood_loss(pairs: ScoredPairs, own: NoParameters) -> torch.Tensor:
    """Sees what is there."""
    seen.append((pairs.negative_logps is not None, pairs.reference_logps is not None))
    assert (pairs.negative_labels is None) == (pairs.negative_logps is None)
    assert (pairs.negative_reference_logps is not None) == (seen[-1] == (True, True))
    return -pairs.logps / pairs.length if pairs.negative_logps is None else pairs.negative_logps - pairs.logps


seen: list[tuple[bool, bool]] = []


@pytest.mark.parametrize(("pairs", "reference"), [(True, False), (False, True), (False, False)])
def test_an_objective_is_given_what_it_wants_and_no_more(
    make_study: MakeStudy, tmp_path: Path, pairs: bool, reference: bool
):
    mine = Objective("mine", "mine", NoParameters, likelihood_loss, pairs, reference)
    OBJECTIVES.add(mine, "my_pkg.mine")
    try:
        reports = run(make_study(train={**LIVE, "dropout": 0.1}), tmp_path, objective="mine")
    finally:
        del OBJECTIVES.found["mine"], OBJECTIVES.owners["mine"]
    assert reports[-1].logged == ("loss",)
    assert set(seen[-10:]) == {(pairs, reference)}


def table_of(config: StudyConfig, root: Path) -> Path:
    data = load_tokens(config.data.tokens)
    folder = reference_table(config, digest_of_weights(load_base(config)), data, root, print, Stop())
    assert folder is not None
    return folder


def test_a_table_and_a_live_reference_give_the_same_losses(make_study: MakeStudy, tmp_path: Path, ray_here: None):
    config = make_study(train={"epochs": 2})
    by_table = run(config, tmp_path / "a", table_of(config, tmp_path / "tables"))
    live = run(make_study(train={**LIVE, "epochs": 2}), tmp_path / "b")
    np.testing.assert_allclose(losses(by_table), losses(live), rtol=1e-5, atol=1e-5)


def test_of_a_table_only_what_is_missing_is_made(make_study: MakeStudy, tmp_path: Path, ray_here: None):
    config = make_study(train={"epochs": 2})
    folder = table_of(config, tmp_path)
    first, second = sorted(folder.glob("*.parquet"))
    content, before = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    assert table_of(config, tmp_path) == folder
    assert second.read_bytes() == content
    longer = table_of(make_study(train={"epochs": 3}), tmp_path)
    assert longer == folder
    assert len(list(folder.glob("*.parquet"))) == 3
    assert first.stat().st_mtime_ns == before
    assert table_of(make_study(train={"seed": 5}), tmp_path) != folder


def test_a_table_of_other_pairs_is_refused(make_study: MakeStudy, tmp_path: Path, ray_here: None):
    config = make_study()
    with pytest.raises(ValueError, match="made for other weights, tokens or pairs"):
        run(config, tmp_path / "a", table_of(config, tmp_path), seed=5)


def test_trials_of_other_pairs_score_the_reference_themselves(make_study: MakeStudy, tmp_path: Path):
    config = make_study(search={"space": {"null_ratio": {"low": 0.05, "high": 0.2}}})
    data = load_tokens(config.data.tokens)
    assert reference_table(config, "digest", data, tmp_path, print, Stop()) is None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_resumes_at_its_last_rung(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE)
    undisturbed = run(config, tmp_path / "a")

    def killed(report: TrialReport) -> None:
        if report.score:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(Job(config, config.train, tmp_path / "b"), killed, Group())
    resumed = run(config, tmp_path / "b")
    np.testing.assert_array_equal(losses(resumed), losses(undisturbed))
    assert fids(resumed) == fids(undisturbed)
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True))


def test_a_run_that_is_asked_to_stop_writes_its_checkpoint_and_goes_on_later(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train={**LIVE, "epochs": 3000})
    job, reports = Job(config, config.train, tmp_path / "trial"), list[TrialReport]()
    sign = tmp_path / stop_sign(config)

    def look(report: TrialReport) -> None:
        reports.append(report)
        if report.stopped:
            sign.unlink()

    stopper = threading.Timer(1.5, sign.touch)
    stopper.start()
    assert fine_tune(job, look, Group()) is None
    stopped = reports[-1]
    assert stopped.stopped
    assert stopped.step > 0
    assert torch.load(tmp_path / "trial" / "checkpoint.pt", weights_only=True)["step"] == stopped.step

    def enough(report: TrialReport) -> None:
        reports.append(report)
        sign.touch()

    before = [row for report in reports for row in report.history]
    reports.clear()
    fine_tune(job, enough, Group())
    again = [row for report in reports for row in report.history]
    assert again[: len(before)] == before  # reported once more: what the driver had not yet written is not lost
    assert [row[0] for row in again] == list(range(1, reports[-1].step + 1))
    assert reports[-1].step > stopped.step
    assert reports[-1].seconds > stopped.seconds


def test_when_memory_runs_out_the_micro_batch_is_halved_and_no_result_changes(make_study: MakeStudy, tmp_path: Path):
    config = make_study(family="var", train={**LIVE, "global_batch": 240}, rungs=[{"at": 1.0, "samples": 40}])
    packed = Job(config, config.train, tmp_path / "little").packed()
    (tmp_path / "job.json").write_text(packed)
    # A micro-batch of 120 takes 170 MiB, one of 240 takes 270.  One arena: what a thread's own arena has free would
    # be room beyond the limit, and how much it has is chance.
    command = [sys.executable, "-m", "tests.little_memory", str(tmp_path / "job.json"), "220"]
    one_arena = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=one_arena)
    assert json.loads(found.stdout.splitlines()[-1]) == [120]
    assert json.loads((tmp_path / "little" / "micro_batch").read_text()) == {"micro_batch": 120, "halvings": 1}
    whole = run(config, tmp_path / "whole")
    little = kept(tmp_path / "little")
    np.testing.assert_allclose(losses(little), losses(whole), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fids(little), fids(whole), rtol=1e-4)


def test_memory_that_runs_out_for_several_workers_at_once_is_one_event(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE)
    job = Job(placed(config, workers=2), config.train, tmp_path)
    for size in (12, 6):
        tried = smaller(job)  # by both workers, each of which then halves
        assert micro_batch_size(tried.config.placement, 24) == size
        assert [shrink(job, tried), shrink(job, tried)] == [True, True]
    assert not shrink(job, smaller(job))


def out_of(message: str) -> Exception:
    return torch.OutOfMemoryError(message) if message == "CUDA out of memory." else RuntimeError(message)


@pytest.mark.parametrize("part", ["tokens", "images", "features"])
def test_when_memory_runs_out_in_scoring_less_is_made_at_a_time_and_no_result_changes(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    """Nothing is trained again, and nothing with a smaller micro-batch."""
    config = make_study(family="var", train=LIVE)
    whole = run(config, tmp_path / "whole")
    names = {"tokens": "sample_tokens", "images": "decode_images", "features": "extract"}
    real, shares = getattr(scoring_module, names[part]), list[int]()

    def little(*arguments: Any) -> Any:
        room = arguments[4] if part == "tokens" else arguments[-1]
        shares.append({"tokens": CACHE_BYTES // room, "images": PIXELS_AT_A_TIME // room, "features": room}[part])
        if shares[-1] < 4:
            raise out_of("CUDA out of memory." if len(shares) % 2 else "cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return real(*arguments)

    monkeypatch.setattr(scoring_module, names[part], little)
    thrifty = run(config, tmp_path / "little")
    assert shares == [1, 2, 4] * 2
    assert not (tmp_path / "little" / "micro_batch").exists()
    np.testing.assert_array_equal(losses(thrifty), losses(whole))
    np.testing.assert_allclose(fids(thrifty), fids(whole), rtol=1e-6)


def test_what_was_trained_before_a_score_that_was_lost_is_not_trained_again(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At each rung: the machine is lost while images are sampled."""
    config = make_study(train=LIVE)
    whole, trained = run(config, tmp_path / "whole"), list[int]()
    real_step, real_score = loop_module.train_step, loop_module.score_rung

    def step(loop: Loop, number: int) -> Tensor:
        trained.append(number + 1)
        return real_step(loop, number)

    def lost(loop: Loop, at: int, *rest: Any) -> RungScore:
        if at not in scored:
            scored.append(at)
            raise ConnectionAbortedError("lost")
        return real_score(loop, at, *rest)

    scored = list[int]()
    monkeypatch.setattr(loop_module, "train_step", step)
    monkeypatch.setattr(loop_module, "score_rung", lost)
    for report in whole:
        with pytest.raises(Stuck, match="lost"):
            run(config, tmp_path / "cut")
        assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == report.step
    resumed = run(config, tmp_path / "cut")
    assert trained == list(range(1, whole[-1].step + 1))
    np.testing.assert_array_equal(losses(resumed), losses(whole))
    assert fids(resumed) == fids(whole)
    assert [report.step for report in resumed] == [report.step for report in whole]


def test_memory_that_is_too_small_to_score_ends_the_trial(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def none(*arguments: Any) -> Any:
        raise out_of("CUDA error: out of memory")

    config = make_study(train=LIVE)
    monkeypatch.setattr(scoring_module, "decode_images", none)
    with pytest.raises(NoRoom, match="memory runs out in scoring"):
        run(config, tmp_path)
    assert not (tmp_path / "micro_batch").exists()


def test_memory_that_is_too_small_for_a_quarter_of_the_micro_batch_is_given_up(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE)
    job = Job(config, config.train, tmp_path)
    assert [shrink(job), shrink(job), shrink(job)] == [True, True, False]
    assert smaller(job).config.placement.micro_batch == 6
    assert [shrink(job), shrink(job)] == [False, False]
    one = Job(placed(config, micro_batch=1), config.train, tmp_path / "one")
    assert not shrink(one)


def test_writing_is_tried_again_for_a_while(tmp_path: Path):
    folder, failures = tmp_path / "away", list[OSError]()

    def write() -> None:
        try:
            (folder / "file").write_text("x")
        except OSError as error:
            failures.append(error)
            folder.mkdir()  # as a file server that comes back
            raise

    patiently(write)
    assert len(failures) == 1
    assert (folder / "file").read_text() == "x"


def test_files_that_cannot_be_used_are_no_fault_of_the_trial(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE)
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(Stuck, match=r"checkpoint\.pt: damaged checkpoint; delete it to start this trial over"):
        run(config, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Stuck, match="Not a directory"):
        run(config, tmp_path / "file" / "trial")


def test_a_diverged_run_says_where(make_study: MakeStudy, tmp_path: Path):
    with pytest.raises(Diverged, match=r"the loss is nan at step \d+"):
        run(make_study(train=LIVE), tmp_path, learning_rate=1e30)


def test_a_score_that_is_no_number_ends_the_trial(make_study: MakeStudy, tmp_path: Path):
    """As statistics far out make it: a finite mean, whose square is infinite."""
    config = make_study(train=LIVE)
    content = dict(np.load(config.score.reference))
    np.savez(tmp_path / "far.npz", **{**content, "mu": content["mu"] + 1e200})
    score = config.score.model_copy(update={"reference": str(tmp_path / "far.npz")})
    with pytest.raises(Diverged, match=r"^the FID is (inf|nan) at step 5$"):
        run(config.model_copy(update={"score": score}), tmp_path / "run")
    assert not (tmp_path / "run" / "model.pt").exists()


def test_weights_that_are_lost_just_before_a_rung_are_never_scored(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE, rungs=[{"at": 0.1, "samples": 40}, {"at": 1.0, "samples": 40}])
    with pytest.raises(Diverged, match="the weights are no longer finite at step 1"):
        run(config, tmp_path, learning_rate=1e39)


def test_the_final_weights_are_there_when_the_end_is_reported(make_study: MakeStudy, tmp_path: Path):
    config = make_study(train=LIVE)
    there: dict[int, bool] = {}

    def look(report: TrialReport) -> None:
        there[report.step] = (tmp_path / "model.pt").is_file()
        if report.step == report.total_steps and 0 not in there:
            there[0] = True
            raise KeyboardInterrupt  # as a study that is stopped at this very moment

    with pytest.raises(KeyboardInterrupt):
        fine_tune(Job(config, config.train, tmp_path), look, Group())
    assert {step: there[step] for step in (5, 10, 0)} == {5: False, 10: True, 0: True}
    (tmp_path / "model.pt").unlink()
    assert len(run(config, tmp_path)) == 2
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize("change", [{"score": {"seed": 9}}, {"train": {**LIVE, "seed": 1}}])
def test_a_folder_of_another_run_is_refused(make_study: MakeStudy, tmp_path: Path, change: dict[str, Any]):
    run(make_study(train=LIVE), tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: belongs to another fine-tuning"):
        run(make_study(**{"train": LIVE, **change}), tmp_path)


def test_the_ema_is_what_is_scored(make_study: MakeStudy, tmp_path: Path):
    run(make_study(train=LIVE), tmp_path / "with")
    run(make_study(train={**LIVE, "ema_decay": 0.0}), tmp_path / "without")
    content = torch.load(tmp_path / "with" / "checkpoint.pt", weights_only=True)
    final = dict(zip(content["ema"], weights(tmp_path / "with"), strict=True))
    assert all(torch.equal(content["ema"][name], tensor) for name, tensor in final.items())
    assert not torch.equal(content["ema"]["output.weight"], content["model"]["output.weight"])
    assert torch.equal(content["model"]["output.weight"], weights(tmp_path / "without")[-1])


def test_samples_are_scored_by_shards_of_any_number_of_workers(make_study: MakeStudy):
    config = make_study()
    scoring, model = scoring_of(config, torch.device("cpu")), load_base(config)
    protocol = protocol_of(config, scoring, 600)
    one, three = (
        [
            images
            for rank in range(world)
            for _, images, _ in sample_shards(model, scoring, protocol, Group(rank, world))
        ]
        for world in (1, 3)
    )
    assert torch.equal(torch.cat(one), torch.cat(three))
    features = extract(scoring.extractor, torch.cat(one)).pooled.numpy()
    expected = frechet_distance(Moments.of(features), scoring.reference)
    assert score(model, scoring, protocol, Group()).score.values["fid"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("samples", [2, 3, 4, 9])
def test_very_few_samples_are_scored_too(make_study: MakeStudy, samples: int):
    config = make_study()
    scoring = scoring_of(config, torch.device("cpu"))
    scored = score(load_base(config), scoring, protocol_of(config, scoring, samples), Group())
    for name in ("fid", "inception_score"):
        assert np.isfinite(scored.score.values[name])
        assert len(scored.score.without[name]) == samples // 2
        assert np.isfinite(scored.score.without[name]).all()


def test_tokens_of_another_tokenizer_are_refused(make_study: MakeStudy, tmp_path: Path):
    from cca_ray.models.official import build, save_official

    save_official(build("llamagen", "S", num_classes=10, vocab_size=64, block_size=16), tmp_path / "other.pt")
    config = make_study(train=LIVE)
    config = config.model_copy(
        update={"base": config.base.model_copy(update={"checkpoint": str(tmp_path / "other.pt")})}
    )
    with pytest.raises(ValueError, match=r"models 16 tokens of 64 codes and 10 classes, but .* holds 16 of 32 and 10"):
        run(config, tmp_path / "run")


def test_a_card_is_named_also_where_no_ray_runs(monkeypatch: pytest.MonkeyPatch):
    """As where `evaluate --verify` scores on another machine."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert card_here() == "CPU"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert card_here() == "H100"
