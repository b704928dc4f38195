"""Which errors pass, by what MLflow's own client makes of real answers, databases and folders."""

import errno
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from cca_ray.tracking.tracker import ENVIRONMENT
from cca_ray.tracking.trouble import A_FEW, FOR_EVER, ONCE, cause, tries
from tests.ports import free_port


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server that says this to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_GET  # noqa: N815 (so http.server finds them)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def failure(uri: str, way: str, file: Path) -> Exception:
    """What comes of a call, or of a file on its way."""
    file.write_text("content")
    try:
        if way == "call":
            MlflowClient(uri).set_tag("0" * 32, "name", "value")
        else:
            get_artifact_repository(f"{uri}/artifacts", uri).log_artifact(str(file))
    except Exception as error:
        return error
    raise AssertionError("it arrived")


@pytest.fixture(autouse=True)
def as_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("status", "body", "times"),
    [
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}', ONCE),
        (400, '{"error_code": "BAD_REQUEST", "message": "(sqlite3.OperationalError) busy"}', A_FEW),
        (401, "log in", ONCE),
        (403, "", ONCE),
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}', ONCE),
        (409, "", ONCE),
        (429, "slowly", FOR_EVER),
        (500, "", A_FEW),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "no"}', A_FEW),
        (502, "", FOR_EVER),
        (503, '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "no"}', FOR_EVER),
        (504, "", FOR_EVER),
    ],
)
@pytest.mark.parametrize("way", ["call", "artifact"])
def test_an_answer_is_told_from_none(tmp_path: Path, status: int, body: str, times: float, way: str):
    with answering(status, body) as uri:
        error = failure(uri, way, tmp_path / "file")
    if way == "artifact" and status == 400:  # of a file a server tells only the status
        times = ONCE
    assert tries(error) == times
    assert "\n" not in cause(error)


@pytest.mark.parametrize("way", ["call", "artifact"])
@pytest.mark.parametrize("who", ["nobody", "silent", "no such host"])
def test_who_does_not_answer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, way: str):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if who == "silent" else free_port()
        uri = "http://nowhere.invalid" if who == "no such host" else f"http://127.0.0.1:{port}"
        assert tries(failure(uri, way, tmp_path / "file")) == FOR_EVER


def test_a_database_that_is_locked_passes_and_one_without_its_tables_does_not(tmp_path: Path):
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(path, timeout=0)) as other:
        one.execute("create table there (x)")
        one.execute("begin exclusive")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("select * from there")
        one.rollback()
        with pytest.raises(sqlite3.OperationalError) as absent:
            other.execute("select * from not_there")
    assert tries(MlflowException("", TEMPORARILY_UNAVAILABLE)) == FOR_EVER
    assert [tries(wrapped(error.value)) for error in (locked, absent)] == [FOR_EVER, ONCE]


def wrapped(error: Exception) -> Exception:
    """As MLflow raises what its database does."""
    try:
        raise MlflowException(f"{error}", TEMPORARILY_UNAVAILABLE) from error
    except MlflowException as outer:
        return outer


@pytest.mark.parametrize("number", [errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EROFS, errno.ENOENT, errno.ENOSPC])
def test_a_folder_that_says_no_is_not_waited_for(number: int):
    assert tries(OSError(number, os.strerror(number), "/mlartifacts")) == ONCE
