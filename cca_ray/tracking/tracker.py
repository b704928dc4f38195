"""MLflow: an experiment, a parent run per model size, a child run per trial, their data set and models.

Nothing waits for MLflow: an entry is one line in a journal file, and a thread carries the lines to MLflow, in order.
A server that is away is waited for. An entry that cannot arrive, while others can, is told of and set aside. What a
process that ended or was killed leaves behind is carried by the next `Tracker` on that journal.
Only the study's driver writes, so a SQLite store has a single writer.
"""

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from cca_ray.errors import without_secrets
from cca_ray.storage.uris import command_line
from cca_ray.tracking.journal import Journal, JsonObject
from cca_ray.tracking.pyfunc import Settings
from cca_ray.tracking.store import STATUS, DataSet, Store
from cca_ray.tracking.trouble import FOR_EVER, ONCE, cause, tries

LOG = logging.getLogger(__name__)
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow server` shows a database, unless it is told otherwise
LONGEST_PAUSE_S = 15.0  # between two tries
MOST_LINES = 10  # on entries that did not arrive; of others only the log has one
# What an entry stands behind: it is not tried as long as an earlier one of these, of the same run, has not arrived.
# So the champion is a model that can be loaded.
BEHIND = {"scores": ("model",), "pack": ("model",), "register": ("model", "pack")}
# A new database logs every migration, a busy one tracebacks, a model the check of its example.
CHATTER = {"alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL, "mlflow.pyfunc": logging.WARNING}
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # by default one call is tried for minutes; here the journal waits
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds of silence
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a run
    "MLFLOW_UV_AUTO_DETECT": "false",  # whatever project lies in the working directory is none of the model's
}


def finite(row: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if math.isfinite(value)}


def told(entry: JsonObject) -> str:
    """What an entry brings, and to what, in a few words."""
    file = f" {PurePath(entry['path']).name}" if "path" in entry else ""
    return f"{entry.get('do')}{file} of {entry.get('key', entry.get('prefix', 'the experiment'))}"


class Tracker:
    """One experiment in one MLflow store, written by a thread. Runs go by their keys.

    The writing methods return at once and raise nothing on MLflow's account; two threads may call them.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: Path | None = None,
        journal: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        """`artifacts`: where a new experiment keeps its files, if the store is a database; a server knows itself.

        `journal`: a file of this process alone; None: memory. `say` is called with lines for people, from the thread.
        Raises ValueError if the store cannot be used. But a server that this journal has reached before may be away.
        """
        for name, level in CHATTER.items():
            logging.getLogger(name).setLevel(level)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.uri, self._say = without_secrets(uri), say  # as it is shown
        self._away, self._sent = False, 0  # whether the last try failed; how many entries went through since
        self._failed: set[tuple[object, object]] = set()  # of the entries that are set aside: kind, key
        self._lines, self._again = 0, False  # lines that told of one of these; whether all are tried once more
        try:
            self._journal = Journal(journal)
        except OSError as error:
            raise ValueError(f"MLflow's journal {journal} cannot be used: {cause(error)}") from None
        try:
            self._store = Store(uri, experiment, artifacts, self._tell)
            self._open(journal)
        except Exception as error:  # MLflow's, SQLAlchemy's, a missing driver's
            raise ValueError(f"MLflow at {self.uri} cannot be used: {cause(error)}") from None
        self.client = self._store.client
        self.browse = (
            self.uri if self._store.server else command_line("mlflow", "server", "--backend-store-uri", self.uri)
        )
        self.page = self.uri if self._store.server else LOCAL_PAGE
        self._changed = threading.Condition()  # guards the journal and all that follows
        self._entered, self._done = len(self._journal.entries), 0
        self._hurry = self._stopping = self._unwritten = False
        if self._entered:
            self._tell(f"MLflow: sending {self._entered} entries that an earlier process left in {journal}")
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def _open(self, journal: Path | None) -> None:
        """Open the experiment. A file beside the journal remembers that it was, for a start without the server."""
        store, reached = self._store, journal.with_name(f"{journal.name}.experiment") if journal else None
        here = f"{self.uri}\n{store.experiment}\n"
        before = reached is not None and reached.exists() and reached.read_text() == here
        try:
            store.open()
        except Exception as error:
            if not (before and tries(error) == FOR_EVER):
                raise
            self._tell_away()
        if store.server and reached and not before:
            reached.write_text(here)

    @property
    def experiment_id(self) -> str:
        """Empty as long as the server has been away since the start."""
        return self._store.experiment_id

    @property
    def trouble(self) -> str:
        """What is amiss at this moment, in a clause; empty if nothing."""
        if self._away:
            return f"{self.uri} does not answer; {len(self._journal.entries)} entries wait"
        return f"{len(self._journal.aside)} entries did not arrive" if self._journal.aside else ""

    @property
    def left(self) -> str:
        """What has not arrived, where it waits, and what sends it; empty if all has."""
        aside, count = self._journal.aside, len(self._journal.aside) + len(self._journal.entries)
        if not count:
            return ""
        then = "they are lost" if self._journal.file is None else "running the same command again sends them"
        entries = f"{count} entr{'ies wait' if count > 1 else 'y waits'} in {self._journal.where}"
        if self._journal.entries or not aside:
            return f"MLflow at {self.uri} does not answer; {entries}; {then}"
        kinds = ", ".join(f"{kind} ×{n}" for kind, n in Counter(f"{entry.get('do')}" for entry in aside).items())
        return f"MLflow at {self.uri} has not accepted everything; {entries} ({kinds}); once the cause is fixed, {then}"

    def run_id(self, key: str) -> str | None:
        """The id of the run of this key, once it is made or found."""
        run = self._store.runs.get(key)
        return run.id if run else None

    def run(self, key: str, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Make the run of this key, or reopen it as RUNNING if an interrupted study left it. `parent`: a key."""
        self._enter("run", key=key, name=name, parent=parent, tags={k: f"{v}" for k, v in (tags or {}).items()})

    def params(self, key: str, params: Mapping[str, object]) -> None:
        """Log parameters; the same again is no change."""
        self._enter("params", key=key, params={name: f"{value}" for name, value in params.items()})

    def metrics(self, key: str, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Log metrics by optimizer step; what is not finite is left out, for MLflow would store 1.8e308.

        A child takes a step once: all of a step's metrics go into one call, in the order of the steps.
        """
        whole = {int(step): finite(row) for step, row in rows.items()}
        self._enter("metrics", key=key, rows=sorted((step, row) for step, row in whole.items() if row))

    def tags(self, key: str, tags: Mapping[str, str]) -> None:
        self._enter("tags", key=key, tags={name: f"{value}" for name, value in tags.items()})

    def image(self, key: str, name: str, path: str | Path, step: int) -> None:
        """Log a picture, once per name and step. The file must stay until it is sent."""
        self._enter("image", key=key, name=name, path=self._journal.name(path), step=int(step))

    def file(self, key: str, path: str | Path, folder: str | None = None) -> None:
        """Log a file, in this folder; one of the same name is replaced. It must stay until it is sent."""
        self._enter("file", key=key, path=self._journal.name(path), folder=folder)

    def note(self, key: str, text: str) -> None:
        """The run's description, in Markdown; it replaces the one before."""
        self.tags(key, {MLFLOW_RUN_NOTE: text})

    def describe(self, tags: Mapping[str, str]) -> None:
        """Give the experiment these tags, where it does not have them."""
        self._enter("describe", tags=dict(tags))

    def data_set(self, key: str, data_set: DataSet) -> None:
        """Say what the run takes in; the same again is no change."""
        self._enter("data_set", key=key, **vars(data_set))

    def model(
        self,
        key: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        step: int,
        scores: Mapping[str, float],
        data_set: DataSet,
    ) -> None:
        """Make the model of this run, once, and log its scores on it and on the run; again is no change."""
        given = {param: f"{value}" for param, value in params.items()}
        content = {"name": name, "params": given, "tags": dict(tags), "step": int(step), "scores": finite(scores)}
        self._enter("model", key=key, **content, data_set=data_set.id)

    def scores(self, key: str, scores: Mapping[str, float], data_set: DataSet) -> None:
        """More scores of this run's model, at its last step."""
        self._enter("scores", key=key, scores=finite(scores), data_set=data_set.id)

    def pack(self, key: str, parent: str, files: Mapping[str, str], settings: Settings) -> None:
        """Make the model of this run one that `mlflow.pyfunc` loads: see `Champion`. Also an output of `parent`.

        `files`: `model` and `tokenizer`; they must stay until they are sent.
        """
        found = {folder: self._journal.name(path) for folder, path in files.items()}
        self._enter("pack", key=key, parent=parent, files=found, settings=settings.model_dump())

    def register(self, key: str, name: str, alias: str, description: str, tags: Mapping[str, str]) -> None:
        """Register the model of this run, once, and give it the alias; `tags` has `KEY`, which names the study."""
        given = {tag: f"{value}" for tag, value in tags.items()}
        self._enter("register", key=key, name=name, alias=alias, description=description, tags=given)

    def end(self, key: str, state: str, reason: str = "") -> None:
        """Close a run: COMPLETE, PRUNED or FAIL, as in Optuna, or INTERRUPTED."""
        assert state in STATUS, state
        self._enter("end", key=key, state=state, reason=reason)

    def settle(self, prefix: str, states: Mapping[str, Sequence[str]]) -> None:
        """Close what a killed driver left open below `prefix`: with its true state and reason, else as INTERRUPTED.

        `states`: key -> state, reason of the trials that have ended for good.
        """
        self._enter("settle", prefix=prefix, states={key: list(pair) for key, pair in states.items()})

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was entered so far is in MLflow; False if that takes longer."""
        with self._changed:
            entered, self._hurry = self._entered, True  # a server that has just come back is asked at once
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= entered or self._stopping, timeout_s)
            return self._done >= entered

    def close(self, timeout_s: float, patient: bool = False) -> None:
        """Flush and stop the thread; say what is left.

        `patient`: not before MLflow has failed to answer for so long; a large model takes its time, and so does all
        that has waited for a server that is back. What was set aside is tried once more.
        """
        self._flush_all(timeout_s, patient)
        if patient and self._journal.aside and not self._journal.entries:
            with self._changed:
                self._entered += self._journal.take_up()
                self._failed, self._again = set(), True
            self._flush_all(timeout_s, patient)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(1.0)  # a call that hangs is left behind
        if self.left:
            self._tell(self.left)

    def _flush_all(self, timeout_s: float, patient: bool) -> None:
        sent = self._sent
        while not self.flush(timeout_s) and patient and (not self._away or self._sent != sent):
            sent = self._sent

    def _enter(self, do: str, **content: Any) -> None:
        trouble = None
        with self._changed:
            try:
                self._journal.append({"do": do, "at": int(time.time() * 1000), **content})
            except OSError as error:
                trouble, self._unwritten = (None if self._unwritten else error), True
            self._entered += 1
            self._changed.notify_all()
        if trouble:
            self._tell(f"MLflow's journal {self._journal.where} cannot be written, memory only: {cause(trouble)}")

    def _work(self) -> None:
        """The thread: carry entry after entry."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._journal.entries or self._stopping)
                if self._stopping:
                    return
                entry = self._journal.entries[0]
            arrived = not self._is_behind(entry) and self._carry(entry)
            if arrived is None:
                return
            with self._changed:
                self._journal.pop(arrived)
                back = self._away and not self._journal.entries
                (self._failed.discard if arrived else self._failed.add)((entry.get("do"), entry.get("key")))
            if back:
                self._tell(f"MLflow is back; sent {self._sent} entries")
                self._away = False
            with self._changed:  # last, so that who waits finds all said
                self._done += 1
                self._changed.notify_all()

    def _is_behind(self, entry: JsonObject) -> bool:
        """Whether it needs another, which has not arrived; that one was told of."""
        kind, key, parent = entry.get("do"), entry.get("key"), entry.get("parent")
        wants = {("run", parent), *((before, key) for before in BEHIND.get(f"{kind}", ()))}
        return not self._failed.isdisjoint(wants if kind == "run" else {*wants, ("run", key)})

    def _carry(self, entry: JsonObject) -> bool | None:
        """Bring one entry to MLflow, however long that takes; whether it arrived. None: told to stop."""
        pause_s, tried = 1.0, 0
        while True:
            try:
                if not self._store.experiment_id:
                    self._store.open()
                self._apply(entry)
                self._sent += 1
                return True
            except Exception as error:  # whatever it is, the thread must live
                tried, most = tried + 1, tries(error)
                others = self._again or any(kind == entry.get("do") for kind, _ in self._failed)
                if tried >= (ONCE if others and most < FOR_EVER else most):  # of the same kind, which waited in vain
                    self._tell_failed(entry, error)
                    return False
                if most == FOR_EVER:
                    self._tell_away(error)
            with self._changed:
                self._hurry = False
                self._changed.wait_for(lambda: self._stopping or self._hurry, pause_s)
                if self._stopping:
                    return None
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _apply(self, entry: JsonObject) -> None:
        arguments, find = dict(entry), self._journal.find
        if "path" in entry:
            arguments["path"] = find(entry["path"])
        if "files" in entry:
            arguments["files"] = {folder: find(path) for folder, path in entry["files"].items()}
        getattr(self._store, arguments.pop("do"))(**arguments)

    def _tell_failed(self, entry: JsonObject, error: Exception) -> None:
        """Only the log has more than a few of them, for their cause may be the same."""
        line = f"MLflow: could not log {told(entry)}: {cause(error)}"
        self._lines += 1
        if self._lines > MOST_LINES or self._again:
            LOG.info("%s", line)
        else:
            self._tell(line + "; the log has the next ones" * (self._lines == MOST_LINES))

    def _tell_away(self, error: Exception | None = None) -> None:
        if error is None or not self._away:
            why = f" ({cause(error)})" if error else ""
            kept = f"entries are kept in {self._journal.where} and sent when it is back"
            self._tell(f"MLflow at {self.uri} does not answer{why}; {kept}")
            self._away, self._sent = True, 0

    def _tell(self, line: str) -> None:
        with suppress(Exception):  # a terminal that is gone
            self._say(line)
