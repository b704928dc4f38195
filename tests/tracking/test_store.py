"""The way to an MLflow server: real HTTP, with a proxy in the environment that lets nothing through."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cca_ray.tracking.store import reach


class Answer(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Refuse(Answer):
    code = 503


def serving(answer: type[Answer]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def server() -> Iterator[str]:
    yield from serving(Answer)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        del os.environ[name]
    urllib.request.install_opener(None)  # the one that is kept has read the environment before
    for url in serving(Refuse):
        monkeypatch.setenv("http_proxy", url)
        yield url


@pytest.mark.parametrize("before", ["", "other.example"])
def test_no_proxy_is_asked_for_this_machine_itself(server: str, proxy: str, monkeypatch, before: str):
    monkeypatch.setenv("NO_PROXY", before)
    with pytest.raises(OSError, match="503"):
        urllib.request.urlopen(f"{server}/health")
    reach(server)
    reach(server)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ",".join(filter(None, [before, "127.0.0.1"]))


def test_a_proxy_that_does_not_lead_to_the_server_is_named_with_the_cure(proxy: str):
    told = f"it was reached through http_proxy={proxy}: set no_proxy=mlflow.example if no proxy leads there"
    with pytest.raises(OSError, match="503") as error:
        reach("http://mlflow.example:5000")
    assert told in str(error.value)


def test_a_proxy_that_is_not_there_is_named_with_the_cure(proxy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"refused; .*http_proxy=http://127\.0\.0\.1:9: set no_proxy=mlflow\.example"):
        reach("http://mlflow.example:5000")
