"""The faults: each starts a study, strikes at a random moment, and mends what is to be mended.

What comes after is the same for all: the same command again until it succeeds, then `judge`.
"""

import hashlib
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from cca_ray.training.small_base import BaseFiles
from tests.chaos.study import KEYS, LONGEST_S, End, Study, Trial, Twin, Verdict, judge
from tests.processes import wait_until
from tests.tracking.servers import Server, empty_mlflow

INTERRUPTED = (130, 143)
STOP_S = 10.0  # from SIGTERM or SIGINT to the end
TMPFS = "64m"


def shell(*words: str | Path) -> bool:
    """Whether it succeeded."""
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


@dataclass
class Case:
    """One study that is to be disturbed; what it had at the fault; what did not go as it must."""

    study: Study
    rng: random.Random
    twin: Twin
    server: Server | None = None
    before: dict[str, Trial] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.broken.append(complaint)

    def remember(self) -> None:
        """The trials that have ended by now; they must neither be lost nor run again."""
        for trial in self.study.found():
            if trial.ended:
                self.before.setdefault(trial.key, trial)

    def begin(self, keys: list[str] | None = None, most_s: float = 3.0) -> str:
        """Start, and wait for a random moment in or after a random trial of `keys`; its key."""
        key, delay = self.rng.choice(keys or KEYS), self.rng.uniform(0, most_s)
        self.notes.append(f"{delay:.1f} s after the begin of {key}")
        self.study.start()
        life = self.study.of_trial(key) / "alive-0"
        wait_until(lambda: life.exists() or self.study.ended(), f"{key} begins", LONGEST_S)
        time.sleep(delay)
        if self.study.ended():
            raise AssertionError(f"ended before the fault:\n{self.study.said()}")
        return key

    def survives(self) -> End:
        """The run goes on to its end."""
        end = self.study.wait()
        self.check(end.code == 0, f"the study did not survive: exit code {end.code}: {end.err[-500:]}")
        return end

    def refused(self, end: End, *words: str) -> None:
        """Exit code 2 and one line that says these words."""
        self.check(end.code == 2, f"exit code {end.code}, not 2")
        self.check(end.err.count("\n") == 1, f"not one line on stderr: {end.err[-1500:]!r}")
        for word in words:
            self.check(word in end.err, f"stderr does not say {word!r}: {end.err[-500:]!r}")

    def ends(self, seconds: float = 90) -> End | None:
        """The run ends by itself; it is killed if it does not."""
        try:
            return self.study.wait(seconds)
        except TimeoutError:
            self.check(False, f"hangs for {seconds:g} s")
            self.study.kill_all()
            return None

    def kill_driver(self) -> None:
        end = self.study.kill()
        self.check(end.killed, f"the driver was not killed: exit code {end.code}")

    def kill(self, *processes: psutil.Process) -> None:
        """SIGKILL, and see them end."""
        self.check(bool(processes), "no process to kill")
        for process in processes:
            self.notes.append(f"kill -9 {process.pid}")
            process.kill()
        try:
            wait_until(lambda: all(map(ended, processes)), "they end", 20)
        except TimeoutError:
            self.check(False, "a process survived its kill")


def ended(process: psutil.Process) -> bool:
    """Also if its parent has not asked yet how it ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_driver(case: Case) -> None:
    case.begin()
    case.kill_driver()
    case.remember()


def kill_driver_often(case: Case, times: int) -> None:
    """While it starts, prepares, trains or compares."""
    kills = 0
    for _ in range(times):
        phase, delay = case.rng.choice(["starting Ray", "steps per trial", *3 * ["/400"]]), case.rng.uniform(0, 2)
        case.study.start()
        out = case.study.folder / f"run-{case.study.runs}.out"
        wait_until(
            lambda phase=phase, out=out: any(t in out.read_text() for t in (phase, "scoring")) or case.study.ended(),
            phase,
            LONGEST_S,
        )
        time.sleep(delay)
        if case.study.ended():
            case.check(case.study.wait().code == 0, f"ended by itself:\n{case.study.said()}")
            case.notes.append("ended before a kill")
        kills += case.study.kill().killed
        case.remember()
    case.notes.append(f"{kills} kills")
    case.check(kills > times // 2, f"only {kills} of {times} kills struck")


def kill_actor(case: Case) -> None:
    case.begin(KEYS[:-1], 1.5)
    case.remember()
    case.kill(*case.study.processes("ray::ImplicitFunc"))
    case.survives()


def kill_worker(case: Case) -> None:
    """One of two; Ray Train starts both anew."""
    case.begin(KEYS[:-1], 1.5)
    wait_until(lambda: bool(case.study.processes("ray::RayTrainWorker")), "a worker is there", 60)
    case.remember()
    case.kill(case.rng.choice(case.study.processes("ray::RayTrainWorker")))
    case.survives()


def kill_raylet(case: Case) -> None:
    case.begin()
    (raylet,) = case.study.processes("raylet")
    case.kill(raylet)
    killed = time.monotonic()
    if end := case.ends():
        case.notes.append(f"exit code {end.code} after {time.monotonic() - killed:.0f} s")
    case.remember()


def server_dies_and_returns(case: Case) -> None:
    assert case.server is not None
    case.begin()
    case.remember()
    case.server.kill()
    time.sleep(case.rng.uniform(5, 10))
    case.server.start()
    end = case.study.wait()
    if waits_for_mlflow(end):  # it was not back before the study was over
        case.study.finish()
    else:
        case.check(end.code == 0, f"the study did not survive: exit code {end.code}: {end.err[-500:]}")


def waits_for_mlflow(end: End) -> bool:
    """Whether the run ended well but for entries that MLflow has not taken yet, and says so."""
    return end.code == 1 and "running the same command again sends them" in end.err


def server_is_away_to_the_end(case: Case) -> None:
    assert case.server is not None
    case.begin()
    case.remember()
    case.server.kill()
    end = case.study.wait()
    case.check(waits_for_mlflow(end), f"did not survive, or says that all has arrived: exit code {end.code}: {end.err}")
    case.server.start()
    case.study.finish()


def read_only_storage(case: Case) -> None:
    """A read-only mount over the storage: what is opened from now on can only be read."""
    case.begin()
    storage = case.study.storage
    assert shell("mount", "--bind", storage, storage)
    assert shell("mount", "-o", "remount,bind,ro", storage)
    end = case.ends()
    case.remember()
    shell("umount", "-l", storage)
    if end:
        case.refused(end)


def full_storage(case: Case) -> None:
    """Its own small file system, filled to the last byte until the run has ended."""
    case.begin()
    filler = case.study.storage / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
    end = case.ends()
    filler.unlink()
    case.remember()
    if end:
        case.refused(end)


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob(pattern)) if p.is_file()}


def truncated_checkpoint(case: Case) -> None:
    """The driver is killed and the checkpoint of the trial that ran is cut in half."""
    checkpoint = Path()
    for key in case.rng.sample(KEYS, len(KEYS)):
        case.study.start()
        checkpoint = case.study.of_trial(key) / "checkpoint.pt"
        wait_until(lambda path=checkpoint: path.exists() or case.study.ended(), f"{key} has a checkpoint")
        time.sleep(case.rng.uniform(0, 0.3))
        case.study.kill_all()
        if key in case.study.interrupted():
            break
    else:
        raise AssertionError("every trial had ended when its checkpoint was found")
    case.remember()
    case.notes.append(str(checkpoint.parent.name))
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    before = digests(case.study.home, "trials/*/*.pt")
    case.study.start()
    case.refused(case.study.wait(), str(checkpoint), "delete it")
    case.check(digests(case.study.home, "trials/*/*.pt") == before, "checkpoints were changed")
    checkpoint.unlink()


def corrupted_tokens(case: Case) -> None:
    folder = case.study.folder / case.study.base.tokens.name  # MLflow goes by it
    shutil.copytree(case.study.base.tokens, folder)
    space = case.study.folder / "tiny.yaml"
    space.write_text(space.read_text().replace(str(case.study.base.tokens), str(folder)))
    case.begin()
    case.kill_driver()
    case.remember()
    part = case.rng.choice(sorted(folder.glob("part-*.parquet")))
    whole = part.read_bytes()
    torn = bytearray(whole)
    for _ in range(3):
        torn[case.rng.randrange(len(torn))] ^= 0xFF
    part.write_bytes(torn)
    case.study.start()
    case.refused(case.study.wait(), part.name)
    case.check(part.read_bytes() == torn, "the part was changed")
    part.write_bytes(whole)


def corrupted_study(case: Case) -> None:
    case.begin()
    case.study.kill_all()
    case.remember()
    database = case.study.home / "study.db"
    kept = {path: path.read_bytes() for path in database.parent.glob("study.db*")}
    for path in kept:
        path.unlink()
    torn = case.rng.randbytes(100) + kept[database][100:]
    database.write_bytes(torn)
    case.study.start()
    case.refused(case.study.wait(), str(database))
    case.check(database.read_bytes() == torn, "study.db was changed")
    for path, content in kept.items():
        path.write_bytes(content)


def diverging(case: Case) -> None:
    """The other trials are those of the undisturbed study, wherever the diverging one stands among them.

    A weight decay above 2 / rate lets the weights grow from step to step, until a loss is no number.
    """
    points = [{**t.params, "weight_decay": 0.05} for t in case.twin.trials if "search" in t.key]
    growth = math.exp(50 / case.rng.randint(5, 190))
    points.insert(
        case.rng.randrange(len(points)), {"lambda": 2.0, "learning_rate": 1e-3, "weight_decay": 1e3 + 1e3 * growth}
    )
    case.study.write(points, {"weight_decay": (0.01, 1e12)})
    case.study.start()
    case.survives()
    failed = [trial for trial in case.study.found() if trial.state == "FAIL"]
    case.check(len(failed) == 1, f"{len(failed)} trials failed, not 1")
    for trial in failed:
        case.notes.append(trial.reason)
        case.check(trial.reason.startswith("Diverged: "), f"the reason is {trial.reason!r}")


def hung_process(case: Case) -> None:
    case.begin(KEYS[:-1], 1.5)
    case.remember()
    last = max(case.study.home.glob("trials/*/alive-0"), key=lambda path: path.stat().st_mtime)
    hung = psutil.Process(case.study.pid_of(last.parent.name))
    hung.suspend()
    wait_until(lambda: hung.status() == psutil.STATUS_STOPPED, f"process {hung.pid} is stopped", 20)
    end = case.survives()
    case.check(not hung.is_running(), "the hung process is still there")
    case.check("no sign of life" in end.out, "the hung process was not noticed")


def asked_to_stop(case: Case, number: int) -> None:
    """The trial that runs writes its checkpoint first."""
    case.begin()
    assert case.study.process is not None
    lives = case.study.home.glob("trials/*/alive-0")
    begun = max(lives, key=lambda path: path.stat().st_ctime).parent
    asked = time.time()
    case.study.process.send_signal(number)
    end = case.ends(60)
    took = time.time() - asked
    case.notes.append(f"ended after {took:.1f} s")
    if took > STOP_S:
        case.notes.append(f"that is more than {STOP_S:g} s")
    if end:
        case.check(end.code in INTERRUPTED, f"exit code {end.code}: {end.err[-500:]}")
        case.check("same command again" in end.err, f"does not say how to go on: {end.err[-500:]!r}")
    case.remember()
    if begun.name in case.study.interrupted():
        saved = begun / "checkpoint.pt"
        case.check(saved.exists() and saved.stat().st_mtime > asked, f"{begun.name} wrote no checkpoint")


def second_driver(case: Case) -> None:
    case.begin()
    case.remember()
    assert case.study.process is not None
    second = case.study.popen("second")
    code = second.wait(timeout=60)
    text = (case.study.folder / "second.err").read_text()
    case.refused(End(code, "", text, 0), f"in use by process {case.study.process.pid} ")
    case.survives()


@dataclass(frozen=True)
class Fault:
    """`inject` starts the study, disturbs it and mends what must be mended."""

    name: str
    inject: Callable[[Case], None]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the placement, which changes no result
    rtol: float = 1e-6
    needs_server: bool = False
    needs_mount: bool = False
    own_disk: bool = False


FAULTS = [
    Fault("kill -9 of the driver", kill_driver),
    Fault("kill -9 of the Tune actor", kill_actor),
    Fault("kill -9 of a Ray Train worker", kill_worker, {"workers": 2}, rtol=1e-3),
    Fault("kill -9 of the raylet", kill_raylet),
    Fault("MLflow server dies and returns", server_dies_and_returns, needs_server=True),
    Fault("MLflow server away until the end", server_is_away_to_the_end, needs_server=True),
    Fault("read-only storage", read_only_storage, needs_mount=True),
    Fault("full storage", full_storage, needs_mount=True, own_disk=True),
    Fault("truncated checkpoint", truncated_checkpoint),
    Fault("corrupted tokens", corrupted_tokens),
    Fault("corrupted study.db", corrupted_study),
    Fault("NaN", diverging),
    Fault("hung process", hung_process),
    Fault("SIGTERM", lambda case: asked_to_stop(case, signal.SIGTERM)),
    Fault("SIGINT", lambda case: asked_to_stop(case, signal.SIGINT)),
    Fault("second driver", second_driver),
]
TEN_KILLS = Fault("ten kills -9", lambda case: kill_driver_often(case, 10))


@dataclass
class Session:
    """What all cases share: the base, the undisturbed study, one MLflow server."""

    root: Path
    base: BaseFiles
    twins: dict[int, Twin] = field(default_factory=dict)  # by workers a trial

    def twin(self, workers: int = 1) -> Twin:
        """The undisturbed study with so many workers a trial: sampled tokens turn on the last digit of a sum.

        Its reference table is every other study's.
        """
        if workers not in self.twins:
            study = Study(self.root / f"undisturbed-{workers}", self.base, {"workers": workers})
            try:
                if not (study.home / "summary.json").exists():
                    self.furnish(study)
                    study.finish(1)
                twin = self.twins[workers] = Twin(study.found(), study.summary())
                complaints = judge(study, twin.trials, twin, 0.0).complaints
                states = [trial.state for trial in twin.trials]
                if complaints or len(states) != len(KEYS) or set(states) != {"COMPLETE", "PRUNED"}:
                    raise AssertionError(f"the undisturbed study: {states} {complaints}\n{study.said()}")
            finally:
                study.close()
        return self.twins[workers]

    def furnish(self, study: Study) -> None:
        """Put into its storage what would take seconds to make: a new MLflow database, a reference table."""
        if not (self.root / "empty.db").exists():
            empty_mlflow(self.root / "empty.db")
        study.storage.mkdir(exist_ok=True)
        shutil.copy(self.root / "empty.db", study.storage / "mlflow.db")
        reference = self.root / "undisturbed-1" / "runs" / "reference"
        if reference.exists():
            shutil.copytree(reference, study.storage / "reference")

    @cached_property
    def server(self) -> Server:
        folder = self.root / "server"
        folder.mkdir()
        shutil.copy(self.root / "empty.db", folder / "mlflow.db")
        return Server(folder)

    def close(self) -> None:
        if "server" in self.__dict__:
            self.server.kill()

    @contextmanager
    def study(self, fault: Fault, folder: Path) -> Iterator[Study]:
        """A new one. In the end all its processes are killed and its mounts undone."""
        server = self.server if fault.needs_server else None
        if server:
            server.start()
        shutil.rmtree(folder, ignore_errors=True)
        study = Study(folder, self.base, fault.settings, server.url if server else "")
        try:
            study.storage.mkdir()
            if fault.own_disk:
                assert shell("mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", study.storage)
            self.furnish(study)
            yield study
        finally:
            study.close()
            while fault.needs_mount and os.path.ismount(study.storage) and shell("umount", "-l", study.storage):
                pass

    def play(self, fault: Fault, seed: int, number: int = 0) -> Verdict:
        """Disturb a study, let it come to its end and judge it."""
        twin, rng = self.twin(fault.settings.get("workers", 1)), random.Random(f"{seed} {fault.name} {number}")
        with self.study(fault, self.root / f"{fault.name.replace(' ', '-')}-{seed}-{number}") as study:
            case = Case(study, rng, twin, self.server if fault.needs_server else None)
            try:
                fault.inject(case)
                if not study.ended() or study.wait().code != 0 or not (study.home / "summary.json").exists():
                    study.finish()
                database = self.server.folder / "mlflow.db" if fault.needs_server else None
                verdict = judge(study, list(case.before.values()), twin, fault.rtol, database)
            except Exception as error:  # is the outcome of this case; the others go on
                verdict = Verdict(broken=[f"{type(error).__name__}: {error}"])
            journals = [path for path in study.home.glob("*.journal") if path.stat().st_size]
            verdict.broken += [*case.broken, *(f"{path.name} is not empty" for path in journals)]
            verdict.notes += [*case.notes, f"{study.runs} runs"]
            return verdict


def can_mount(folder: Path) -> bool:
    """Whether this process may mount."""
    folder.mkdir(exist_ok=True)
    return shell("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder) and shell("umount", folder)
