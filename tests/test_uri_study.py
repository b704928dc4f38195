"""A study whose inputs and storage are in a bucket: on several machines one after the other, as on one with a disk."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from cca_ray import evaluate, pretrain, report, sample, train, tune
from cca_ray.data.tokens import read_token_set
from cca_ray.evaluation.reference import Reference
from cca_ray.storage.lease import LEASE
from cca_ray.storage.mirror import exists, pull, push, remove, written_at
from cca_ray.storage.uris import COPIES, local_path, to_uri
from cca_ray.training.small_base import BaseFiles, digits
from tests.buckets import CREDENTIALS, s3_server
from tests.commands import invoke, write_space
from tests.conftest import apart, some_digits
from tests.processes import begin, wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture
def template(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URIs below an empty place; {} stands for the path."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    return server.replace("{}", f"{tmp_path.name}/{{}}")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Go on as a machine that has nothing."""
    return lambda: monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / f"cache-{uuid.uuid4().hex}"))


def in_bucket(files: BaseFiles, uri: str) -> BaseFiles:
    """The base's files, brought to the bucket; their names there."""
    root = files.features.parent
    folder = local_path(uri)
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "lock":
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    push(folder)
    return BaseFiles(**{key: to_uri(folder / path.relative_to(root)) for key, path in vars(files).items()})


def start(folder: Path, node: str, verb: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m cca_ray.VERB` on a machine that has nothing but a search space."""
    environment = {**os.environ, "CCA_RAY_CACHE": str(folder / f"cache-{node}")}
    command = [sys.executable, "-m", f"cca_ray.{verb}", *arguments]
    return begin(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def test_a_base_made_at_a_uri_is_fine_tuned_and_scored_on_other_machines(
    base_files: BaseFiles, tmp_path: Path, template: str, elsewhere: Callable[[], None], capsys
):
    images = tmp_path / "photos"
    for name, data in (("one", digits().images[digits().labels == 1]), ("two", digits().images[digits().labels == 2])):
        (images / name).mkdir(parents=True)
        for i, pixels in enumerate(data[:20]):
            Image.fromarray(pixels).save(images / name / f"{i}.png")
    made = ("--images", str(images), "--image-size", "8", "--epochs", "1", "--out", template.format("bases"))
    outcome = invoke(pretrain.main, list(made), capsys)
    assert outcome.code == 0, outcome.err
    space = shlex.split(outcome.out)[-1]
    assert space.startswith("s3://")

    elsewhere()
    trained = [space, "--out", template.format("one"), "--set", "train.epochs=1"]
    outcome = invoke(train.main, trained, capsys)
    assert outcome.code == 0, outcome.err
    weights = template.format("one/model.pt")
    assert outcome.out.rstrip().endswith(f"weights: {weights}")

    elsewhere()
    outcome = invoke(evaluate.main, [space, "--checkpoint", weights, "--samples", "20"], capsys)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["fid"] > 0

    grid, npz = template.format("grid.png"), template.format("samples.npz")
    written = ["--count", "20", "--out", grid, "--npz", npz]
    outcome = invoke(sample.main, [space, *written], capsys)
    assert outcome.code == 0, outcome.err
    assert f"20 images: {npz}\n" in outcome.out
    assert f"20 images: {grid}\n" in outcome.out
    elsewhere()
    assert pull(local_path(grid))
    outcome = invoke(evaluate.main, [space, "--npz", npz], capsys)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["samples"] == 20


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_tokens_and_statistics_are_prepared_from_and_to_uris(base_files: BaseFiles, tmp_path: Path, template: str):
    files = in_bucket(base_files, template.format("base"))
    images, data = local_path(template.format("photos")), some_digits(40)
    for i, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / str(label) / f"{i}.png")
    push(images)
    tokens, reference = template.format("tokens"), template.format("statistics/real.npz")
    command = ("prepare", template.format("photos"), "--image-size", "8", "--augment", "centre", "--part-images", "16")
    command += ("--tokenizer", str(files.tokenizer), "--out", tokens)
    command += ("--features", str(files.features), "--reference", reference, "--reference-size", "8")
    output = finish(start(tmp_path, "first", *command))
    assert f": {tokens}\n" in output
    set_ = read_token_set(local_path(tokens))
    assert set_.tokens.shape == (40, 1, 16)
    assert pull(local_path(reference))
    assert len(Reference.load(local_path(reference)).mean) == len(Reference.load(base_files.reference).mean)
    assert f"token set {set_.digest}: {tokens}" in finish(start(tmp_path, "second", *command[:-6]))


def nothing_at(template: str, what: str) -> str:
    return {
        "bucket": template.replace("s3://studies/", "s3://nowhere/").format("runs"),
        "credentials": template.replace("s3://", "s3://key:hidden@").format("runs"),
    }[what]


@pytest.mark.parametrize(
    ("what", "message"), [("bucket", "no such bucket; create it first"), ("credentials", "put them in the environment")]
)
def test_a_storage_that_cannot_be_used_is_one_line_before_anything_is_begun(
    what: str, message: str, base_files: BaseFiles, tmp_path: Path, template: str, capsys
):
    for verb, option in ((tune, "--storage"), (train, "--storage"), (train, "--out"), (pretrain, "--out")):
        space = [] if verb is pretrain else [str(write_space(tmp_path, base_files))]
        outcome = invoke(verb.main, [*space, option, nothing_at(template, what)], capsys)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert message in outcome.err
        assert "hidden" not in outcome.err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["tiny.yaml"]


def test_an_input_that_is_not_in_the_bucket_is_one_line(base_files: BaseFiles, tmp_path: Path, template: str, capsys):
    tokens = template.format("none")
    outcome = invoke(tune.main, [str(write_space(tmp_path, base_files)), "--set", f"data.tokens={tokens}"], capsys)
    assert outcome.code == 2
    assert f"tiny: data.tokens: no such file: {tokens}; expected a token set" in outcome.err
    outcome = invoke(report.main, ["none", "--storage", template.format("runs")], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"{template.format('runs')}: no such folder" in outcome.err


@pytest.fixture
def two_nodes(template: str, tmp_path: Path) -> Iterator[str]:
    """The address of a cluster whose nodes share nothing: a head that trains nothing, and a node that does."""
    head = {"num_cpus": 0, "dashboard_port": 0, "env_vars": {"CCA_RAY_CACHE": f"{tmp_path}/cache-head"}}
    with apart():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, env_vars={"CCA_RAY_CACHE": f"{tmp_path}/cache-node"})
        yield cluster.address
        cluster.shutdown()


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_nodes_that_share_nothing_but_a_uri_find_who_hangs_and_stop_when_asked(
    base_files: BaseFiles, tmp_path: Path, template: str, two_nodes: str, monkeypatch: pytest.MonkeyPatch
):
    storage, files = template.format("runs"), in_bucket(base_files, template.format("base"))
    space = write_space(tmp_path, files, epochs=2000, reference="live")
    placement = "placement={workers: 2, hung_minutes: 0.5, checkpoint_minutes: 0.05}"
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    process = start(tmp_path, "head", "tune", str(space), "--storage", storage, "--set", placement)
    trial = local_path(storage) / "tiny" / "trials" / "tiny-control-0000"
    checkpoint, life = trial / "checkpoint.pt", trial / "alive-1"
    wait_until(lambda: exists(checkpoint), process=process)
    assert pull(life)
    worker = json.loads(life.read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED, process=process)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), process=process)
    saved = written_at(checkpoint)
    wait_until(lambda: written_at(checkpoint) > saved, process=process)
    saved = written_at(checkpoint)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"no sign of life for 30 s: killed process {worker}" in output
    assert written_at(checkpoint) > saved
    assert not list((tmp_path / "cache-head" / COPIES).rglob("checkpoint.pt"))
    assert list((tmp_path / "cache-node" / COPIES).rglob("checkpoint.pt"))


def outcome(path: Path) -> dict[str, Any]:
    """What does not depend on the machine."""
    (size,) = json.loads(path.read_text())["sizes"]
    return {key: size[key] for key in ("trials", "winner", "finalists", "models", "protocol")}


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_study_whose_machine_was_lost_goes_on_on_another_to_the_same_result(
    base_files: BaseFiles, tmp_path: Path, template: str
):
    (tmp_path / "here").mkdir()
    local = ("tune", str(write_space(tmp_path / "here", base_files, epochs=6)), "--max-concurrent", "1")
    undisturbed = start(tmp_path / "here", "none", *local, "--storage", "runs")

    files = in_bucket(base_files, template.format("base"))
    space = write_space(tmp_path, files, epochs=6)
    storage = template.format("runs")
    command = ("tune", str(space), "--max-concurrent", "1", "--storage", storage)
    finish(undisturbed)

    first = start(tmp_path, "first", *command)
    scored = local_path(storage) / "tiny" / "trials" / "tiny-search-0000" / "checkpoint.pt"
    wait_until(lambda: exists(scored), process=first)
    first.kill()
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    refused = start(tmp_path, "second", *command)
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert f"in use by process {first.pid} on" in output
    remove(local_path(storage) / "tiny" / LEASE)  # as good as a minute later

    output = finish(start(tmp_path, "second", *command))
    assert re.search("found [12] of 4 trials ended", output), output
    summary = local_path(storage) / "tiny" / "summary.json"
    assert pull(summary)
    assert outcome(summary) == outcome(tmp_path / "here" / "runs" / "tiny" / "summary.json")
    assert json.loads(summary.read_text())["sizes"][0]["checkpoint"] == to_uri(summary.parent / "tiny" / "winner.pt")
    assert exists(summary.parent / "report" / "report.html")
    assert pull(log := summary.parent / "log.txt")
    assert log.read_text().count("opening MLflow at") == 2  # of both machines, if of the first its first minute alone
    assert not list(tmp_path.glob("runs"))

    output = finish(start(tmp_path, "third", "report", "tiny", "--storage", storage, "--out", "page"))
    assert output.strip() == "page/report.html"
    assert "digits" not in output
    assert (tmp_path / "page" / "report.html").is_file()
    assert not (tmp_path / "cache-third" / COPIES / "trials").exists()
