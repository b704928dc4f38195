"""The way to an MLflow server: real HTTP, with a proxy in the environment that lets nothing through, and HTTPS."""

import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from werkzeug.serving import make_ssl_devcert

from cca_ray.tracking.store import Store, reach
from cca_ray.tracking.tracker import Tracker


class Answer(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Refuse(Answer):
    code = 503


class AnExperiment(Answer):
    def do_GET(self) -> None:
        super().do_GET()
        known = '"experiment_id": "7", "name": "study", "artifact_location": "mlflow-artifacts:/7"'
        self.wfile.write(f'{{"experiment": {{{known}, "lifecycle_stage": "active"}}}}'.encode())


def serving(answer: type[Answer], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), answer) as server:
        if tls:  # the handshake in the first reading, so that one that fails is that request's end only
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}" if tls else f"http://127.0.0.1:{server.server_port}"
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


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """Its own authority, which no system knows; the key is beside it, and the name is localhost."""
    return make_ssl_devcert(str(tmp_path / "private"), cn="localhost")[0]


@pytest.fixture(params=["server", "client too"])
def private(request: pytest.FixtureRequest, certificate: str) -> Iterator[str]:
    """A server with this certificate, which may want the client to show one too."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, certificate.replace(".crt", ".key"))
    if request.param == "client too":
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(certificate)
    yield from serving(AnExperiment, tls)


TRUSTING = {"MLFLOW_TRACKING_SERVER_CERT_PATH": "", "MLFLOW_TRACKING_INSECURE_TLS": "true", "REQUESTS_CA_BUNDLE": ""}


@pytest.mark.parametrize("private", ["server"], indirect=True)
@pytest.mark.parametrize("name", TRUSTING)
def test_a_certificate_that_mlflow_is_told_of_is_taken(private: str, certificate: str, name: str, monkeypatch):
    monkeypatch.setenv(name, TRUSTING[name] or certificate)
    store = Store(private, "study", None, print)
    store.open()
    assert store.experiment_id == "7"


def test_a_server_whose_certificate_we_do_not_know_has_answered(private: str):
    reach(private)


def test_a_server_that_wants_our_certificate_has_answered(private: str, certificate: str, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate)  # which the system then knows, and so the handshake goes on
    reach(private)


@pytest.mark.parametrize("private", ["server"], indirect=True)
def test_a_certificate_that_nobody_vouches_for_is_one_line(private: str):
    with pytest.raises(ValueError, match=f"^MLflow at {private} cannot be used: self-signed certificate$"):
        Tracker(private, "study")
