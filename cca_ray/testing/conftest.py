"""Options of `pytest --pyargs cca_ray.testing`: whose conformance is tested."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family", action="append", default=[], help="module whose families are tested; repeatable")
