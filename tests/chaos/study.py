"""A tiny real study in processes of its own, and what it has left in Optuna, MLflow and its files.

Processes are known by a mark in their environment, which Ray's daemons and workers inherit: other Rays of this
machine are never touched.
"""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch
import yaml
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.trial import TrialState

from cca_ray.search.mlflow_pages import experiment_name
from cca_ray.tracking.store import KEY, STATUS
from cca_ray.training.small_base import BaseFiles, build_base
from tests.commands import write_space
from tests.conftest import TINY, some_digits

ROOT = Path(__file__).resolve().parents[2]
MARK = "CCA_RAY_CHAOS"  # in the environment of every process of a study
ARMS = ("control", "search")
EPOCHS, STEPS = 40, 400
POINTS = [{"lambda": 2.0, "learning_rate": 1e-3}, {"lambda": 2.0, "learning_rate": 30.0}]
KEYS = ["tiny-control-0000", "tiny-search-0000", "tiny-search-0001", "tiny-search-0002"]  # in the order they run
PLACEMENT = {"checkpoint_minutes": 0.02, "hung_minutes": 0.15, "max_failures": 3}
LONGEST_S = 480.0  # for one run of the command


def tiny_base(folder: Path) -> BaseFiles:
    """A real base, barely trained. One thread: on a busy machine two of them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return build_base(some_digits(), "digits", "llamagen", "S", TINY, folder, lambda what, done, total: None)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class End:
    """How a run of the command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Trial:
    """All that must not depend on what happened to the study."""

    key: str
    params: dict[str, float]
    state: str
    values: list[float]
    intermediate: dict[int, float]
    reason: str
    life: str  # which process ran it last, and when it gave its last sign of life
    ended_at: str

    @property
    def ended(self) -> bool:
        return self.state not in ("RUNNING", "WAITING")

    def differs(self, other: "Trial", rtol: float) -> str:
        """How the other differs, in words; empty if it does not. It may have parameters besides."""
        pairs = {
            "state": (self.state, other.state),
            "reason": (self.reason, other.reason),
            "params": (self.params, {name: other.params.get(name) for name in self.params}),
            "values": (dict(enumerate(self.values)), dict(enumerate(other.values))),
            "intermediate values": (self.intermediate, other.intermediate),
        }
        return "; ".join(f"{what} {b}, not {a}" for what, (a, b) in pairs.items() if not same(a, b, rtol))


def same(a: Any, b: Any, rtol: float) -> bool:
    if isinstance(a, dict):
        return set(a) == set(b) and None not in b.values() and all(math.isclose(a[k], b[k], rel_tol=rtol) for k in a)
    return bool(a == b)


@dataclass
class Study:
    """A folder with a search space, its storage, and the command on them."""

    folder: Path
    base: BaseFiles
    settings: Mapping[str, Any] = field(default_factory=dict)
    uri: str = ""
    process: subprocess.Popen[str] | None = None
    runs: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self.ray = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short: the names of sockets are
        self.write(POINTS, {})

    def write(self, points: list[dict[str, float]], more: Mapping[str, tuple[float, float]]) -> None:
        """The search space: three trials or as many as there are points; `more` is searched besides."""
        path = write_space(self.folder, self.base, epochs=EPOCHS)
        content = yaml.safe_load(path.read_text())
        space = {"lambda": (0.5, 10), "learning_rate": (1e-4, 100.0), **more}
        content["search"] = {
            "space": {name: {"low": low, "high": high} for name, (low, high) in space.items()},
            "first_points": points,
            "trials": max(3, len(points)),
            "grace_trials": 1,
            "random_trials": 2,
        }
        path.write_text(yaml.safe_dump(content))

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    @property
    def home(self) -> Path:
        return self.storage / "study"

    def of_trial(self, key: str) -> Path:
        return self.home / "trials" / key

    def popen(self, log: str) -> subprocess.Popen[str]:
        placement = {f"placement.{name}": value for name, value in {**PLACEMENT, **self.settings}.items()}
        command = [sys.executable, "-m", "cca_ray.tune", "tiny.yaml", "--name", "study", "--storage", "runs"]
        command += ["--max-concurrent", "1", *(["--tracking-uri", self.uri] if self.uri else [])]
        command += [word for name, value in placement.items() for word in ("--set", f"{name}={value}")]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        environment = {**os.environ, MARK: self.mark, "RAY_TMPDIR": str(self.ray), "PYTHONPATH": path}
        environment["RAY_worker_niceness"] = "0"  # a busy machine makes no process look hung
        with (self.folder / f"{log}.out").open("w") as out, (self.folder / f"{log}.err").open("w") as err:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=err, text=True, env=environment, start_new_session=True
            )

    def start(self) -> None:
        """Run the command."""
        self.runs += 1
        self.started = time.monotonic()
        self.process = self.popen(f"run-{self.runs}")

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def wait(self, seconds: float = LONGEST_S) -> End:
        """Until the run has ended by itself. TimeoutError if it does not."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the command did not end within {seconds:g} s:\n{self.said()}") from None
        out, err = ((self.folder / f"run-{self.runs}.{ending}").read_text() for ending in ("out", "err"))
        return End(code, out, err, time.monotonic() - self.started)

    def said(self) -> str:
        """By all runs so far, for people."""
        files = sorted(self.folder.glob("*.out")) + sorted(self.folder.glob("*.err"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def kill(self) -> End:
        """SIGKILL to the driver; the rest of its processes are left to see for themselves. See `End.killed`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)  # no error if it has ended already
        return self.wait(20)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Those of this study, whose title or command begins or whose program ends so."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    words = process.cmdline()
                    if words and (words[0].startswith(title) or words[0].endswith(f"/{title}")):
                        found.append(process)
        return found

    def kill_all(self) -> None:
        """SIGKILL to every process of the study; those that begin meanwhile too."""
        for _ in range(20):
            left = self.processes()
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            if not left:
                break
            psutil.wait_procs(left, timeout=1)
        if self.process is not None:
            self.process.wait(timeout=20)

    def close(self) -> None:
        self.kill_all()
        shutil.rmtree(self.ray, ignore_errors=True)

    def finish(self, most: int = 3) -> list[End]:
        """Run the same command again until it succeeds."""
        ends = []
        for _ in range(most):
            self.start()
            ends.append(self.wait())
            if ends[-1].code == 0:
                return ends
        raise AssertionError(f"no success in {most} runs:\n{self.said()}")

    def pid_of(self, key: str) -> int:
        """The process that runs, or ran, a trial."""
        return int(json.loads((self.of_trial(key) / "alive-0").read_text())["pid"])

    def interrupted(self) -> list[str]:
        """Trials that neither ended nor wait. A trial that has no key yet has done nothing."""
        return [trial.key for trial in self.found() if trial.state == "RUNNING" and trial.key]

    def found(self) -> list[Trial]:
        """The trials of both arms, as they are in `study.db` at this moment."""
        with snapshot(self.home / "study.db") as path:
            if path is None:
                return []
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            names = [study.study_name for study in storage.get_all_studies()]
            trials = []
            for arm in (arm for arm in ARMS if f"study/tiny/{arm}" in names):
                trials += optuna.load_study(study_name=f"study/tiny/{arm}", storage=storage).trials
            storage.engine.dispose()
            return [self.as_trial(trial) for trial in trials]

    def as_trial(self, trial: optuna.trial.FrozenTrial) -> Trial:
        key = trial.user_attrs.get("key", "")
        life = self.of_trial(key) / "alive-0"
        return Trial(
            key,
            dict(trial.params),
            trial.state.name,
            list(trial.values or []) if trial.state != TrialState.PRUNED else [],
            dict(trial.intermediate_values),
            trial.user_attrs.get("reason", ""),
            f"{life.read_text()} {life.stat().st_mtime_ns}" if key and life.exists() else "",
            str(trial.datetime_complete),
        )

    def summary(self) -> dict[str, Any]:
        (size,) = json.loads((self.home / "summary.json").read_text())["sizes"]
        return dict(size)

    def tracked(self, database: Path | None = None) -> tuple[list["Tracked"], str]:
        """What MLflow has of the study: a row for every trial's run, and the status of the size's own."""
        parent_key = self.summary()["mlflow"]["key"]
        with snapshot(database or self.storage / "mlflow.db") as path:
            client = MlflowClient(f"sqlite:///{path}")
            experiment = client.get_experiment_by_name(experiment_name("llamagen", "digits"))
            assert experiment is not None
            runs = client.search_runs([experiment.experiment_id], f"tags.`{KEY}` LIKE '{parent_key}%'")
            children = [
                Tracked(
                    run.data.tags[KEY].rsplit("/", 1)[1],
                    run.info.status,
                    run.data.tags.get("state", ""),
                    run.data.tags.get("reason", ""),
                    {m: [v.step for v in client.get_metric_history(run.info.run_id, m)] for m in ("train/loss", "fid")},
                )
                for run in runs
                if MLFLOW_PARENT_RUN_ID in run.data.tags
            ]
            (parent,) = [run for run in runs if MLFLOW_PARENT_RUN_ID not in run.data.tags]
            return children, parent.info.status


@dataclass(frozen=True)
class Tracked:
    """A trial's run in MLflow. `steps`: of every point of a metric, in order."""

    key: str
    status: str
    state: str
    reason: str
    steps: dict[str, list[int]]


@contextmanager
def snapshot(database: Path) -> Iterator[Path | None]:
    """A copy of a SQLite file that another process may be writing; None if it is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / database.name
        try:
            with (
                closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as source,
                closing(sqlite3.connect(path)) as copy,
            ):
                source.backup(copy)
        except sqlite3.OperationalError:  # none there, or a killed writer's journal is to be rolled back: in the copy
            path.unlink(missing_ok=True)
            for file in database.parent.glob(f"{database.name}*"):
                shutil.copy(file, path.with_name(file.name))
        yield path if path.exists() else None


@dataclass(frozen=True)
class Twin:
    """What an undisturbed study found."""

    trials: list[Trial]
    summary: dict[str, Any]


@dataclass
class Verdict:
    """What a disturbed study lost, repeated, misstated, or found otherwise than the undisturbed one."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # the case did not go as it must: exit codes, messages, files
    notes: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        return [
            f"{name}: {text}"
            for name in ("lost", "repeated", "wrong", "differs", "broken")
            for text in getattr(self, name)
        ]


def judge(study: Study, before: list[Trial], twin: Twin, rtol: float, database: Path | None = None) -> Verdict:
    """Compare a study that has ended, after a fault, with what it had at the fault and with the undisturbed one.

    A trial that failed for a reason of its own has no counterpart in the undisturbed study.
    """
    verdict, after = Verdict(), {trial.key: trial for trial in study.found()}
    for trial in (trial for trial in before if trial.ended):
        now = after.get(trial.key)
        if now is None or (change := trial.differs(now, 0.0)):
            verdict.lost.append(f"{trial.key}: {'not there' if now is None else change}")
        elif (trial.life, trial.ended_at) != (now.life, now.ended_at):
            verdict.repeated.append(f"{trial.key} ran again after its end: {trial.life} -> {now.life}")
    verdict.lost += [f"{t.key} has not ended: {t.state}" for t in after.values() if not t.ended]

    sound = [trial for trial in after.values() if trial.state != "FAIL"]
    if len(sound) != len(twin.trials):
        verdict.lost.append(f"{len(sound)} trials, not {len(twin.trials)}")
    for ours, theirs in zip(sound, twin.trials, strict=False):
        if text := theirs.differs(ours, rtol):
            verdict.differs.append(f"{ours.key}: {text}")
    summary = study.summary()
    for role, theirs in twin.summary["models"].items():
        now, then = summary["models"][role]["values"]["fid"], theirs["values"]["fid"]
        if not math.isclose(now, then, rel_tol=rtol):
            verdict.differs.append(f"FID of {role} {now}, not {then}")
    for name in ("lambda", "learning_rate"):
        now, then = summary["settings"][name], twin.summary["settings"][name]
        if not math.isclose(now, then, rel_tol=1e-9):
            verdict.differs.append(f"the winner's {name} is {now}, not {then}")

    runs, parent = study.tracked(database)
    if parent != "FINISHED":
        verdict.wrong.append(f"the size's run is {parent}")
    for key in {run.key for run in runs} - set(after):
        verdict.wrong.append(f"{key} is in MLflow, not in Optuna")
    for trial in after.values():
        of_trial = [run for run in runs if run.key == trial.key]
        if len(of_trial) != 1:
            (verdict.repeated if of_trial else verdict.lost).append(f"{trial.key} has {len(of_trial)} MLflow runs")
            continue
        (run,) = of_trial
        if (run.status, run.state, run.reason) != (STATUS[trial.state], trial.state, trial.reason):
            verdict.wrong.append(f"{trial.key} is {trial.state} ({trial.reason}), its MLflow run {run}")
        for metric, steps in run.steps.items():
            if len(set(steps)) < len(steps):
                twice = sorted({step for step in steps if steps.count(step) > 1})
                verdict.repeated.append(f"{trial.key}: {metric} logged twice at steps {twice[:5]}")
        expected = {"COMPLETE": STEPS, "PRUNED": STEPS // 2}.get(trial.state)
        if expected and sorted(set(run.steps["train/loss"])) != list(range(1, expected + 1)):
            verdict.lost.append(f"{trial.key}: {len(set(run.steps['train/loss']))} of {expected} losses are in MLflow")
        if expected and sorted(set(run.steps["fid"])) != list(range(STEPS // 2, expected + 1, STEPS // 2)):
            verdict.lost.append(f"{trial.key}: FIDs only at {run.steps['fid']}")
    return verdict
