"""Real servers of buckets, in two protocols: the templates of their URIs."""

from collections.abc import Iterator

import pytest

from tests.buckets import gs_server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as template:
        yield template


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    with gs_server() as template:
        yield template
