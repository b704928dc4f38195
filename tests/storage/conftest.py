"""Real servers of buckets, in two protocols: the templates of their URIs, and URIs below an empty place."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.buckets import CREDENTIALS, gs_server, s3_server

UriOf = Callable[[str], str]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as template:
        yield template


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    with gs_server() as template:
        yield template


@pytest.fixture
def own_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node with an empty cache, which the servers know."""
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "server", "google"])
def uri_of(request: pytest.FixtureRequest, tmp_path: Path, own_node: None) -> UriOf:
    """URIs below an empty place."""
    if request.param == "folder":
        return lambda path: f"{(tmp_path / 'there').as_uri()}/{path}"
    template: str = request.getfixturevalue(request.param)
    return lambda path: template.format(f"{tmp_path.name}/{path}")
