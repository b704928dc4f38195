"""Options of `pytest --pyargs cca_ray.testing`. pytest imports this wherever cca_ray is: it imports nothing heavy."""

import pytest

FAMILY_MODULES: list[str] = []  # of `--family`, for `test_family`


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cca_ray", "conformance of plug-ins for cca_ray")
    group.addoption("--family", action="append", default=[], help="Module whose families are tested; repeatable.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: on a card")
    FAMILY_MODULES[:] = config.getoption("--family")
