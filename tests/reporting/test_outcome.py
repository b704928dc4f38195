"""What `tune` says at its end, and the commands that it prints."""

from pathlib import Path

import pytest

from cca_ray.reporting.asked import in_storage
from cca_ray.reporting.outcome import samples_of


@pytest.mark.parametrize(
    ("by_size", "said"),
    [
        ({"a": 1800}, "1,800 samples"),
        ({"a": 50000, "b": 50000}, "50,000 samples"),
        ({"a": 1800, "b": 5000, "c": 1800}, "1,800 (a, c) and 5,000 (b) samples"),
    ],
)
def test_the_number_of_samples_is_that_of_each_size(by_size: dict[str, int], said: str):
    assert samples_of(by_size) == said


def test_the_storage_is_named_where_another_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCA_RAY_STORAGE", raising=False)
    usual, other = tmp_path / "runs" / "digits", tmp_path / "other" / "digits"
    assert in_storage(usual) == []
    assert in_storage(other) == ["--storage", other.parent]
    monkeypatch.setenv("CCA_RAY_STORAGE", str(other.parent))
    assert in_storage(usual) == ["--storage", usual.parent]
