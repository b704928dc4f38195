"""The verb `plan`."""

from pathlib import Path

import pytest

from cca_ray import plan
from tests.commands import invoke


def test_it_tells_hours_and_money_by_card_without_any_weights(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["llamagen_b", "--storage", str(tmp_path), "--price", "H100=4.9", "--price", "2"]
    outcome = invoke(plan.main, arguments, capsys)
    assert outcome.code == 0, outcome.err
    on = {line.split(":")[0].strip(): line for line in outcome.out.splitlines() if line.startswith("  on ")}
    assert [*on] == ["on A40", "on L40S", "on A100", "on H100"]
    assert "at 4.9 an hour; by arithmetic for ImageNet, not measured" in on["on H100"]
    assert "at 2 an hour" in on["on A40"]
    assert not [*tmp_path.iterdir()]


def test_a_price_of_a_card_that_no_line_tells_of_is_told_of(capsys):
    """A list of prices may be for other studies, too; but one of another case is a slip."""
    outcome = invoke(plan.main, ["llamagen_b", "--price", "H100=4.9", "--price", "T4=0.3", "--price", "2"], capsys)
    assert outcome.code == 0, outcome.err
    (told,) = (line for line in outcome.out.splitlines() if "not used" in line)
    assert (
        told == "price of T4: not used, because no line above is about this card; they are about A100, A40, H100, L40S"
    )
    outcome = invoke(plan.main, ["llamagen_b", "--price", "h100=4.9"], capsys)
    assert (outcome.code, outcome.err) == (2, "error: --price h100=4.9: unknown card; did you mean H100?\n")


@pytest.mark.parametrize("price", ["cheap", "H100=", "-1", "nan", "A40=inf"])
def test_a_price_that_is_none_is_refused(price: str, capsys):
    outcome = invoke(plan.main, ["llamagen_b", f"--price={price}"], capsys)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: --price {price}: expected what an hour of a GPU costs")
