"""Who reads only the last lines of a study knows what is better, how sure that is, and what to do next."""

import io

from cca_ray.contracts import Difference, Edge
from cca_ray.terminal.console import Console
from cca_ray.terminal.last_words import beside, last_words
from tests.studies import summary_of

EDGE = Edge(of="lambda", value=0.52, low=0.5, high=20, end="low", setting="search.space.lambda.low=0.08")


def differing(value: float) -> Difference:
    return Difference(value=value, low=value - 0.3, high=value + 0.3, at_least_as_good=0.5)


def test_the_last_twelve_lines_say_of_each_size_what_it_is_how_sure_and_what_next():
    sizes = [
        summary_of("digits_s", edges=(EDGE,), differences={"guided": differing(-0.1), "control": differing(-6.6)}),
        summary_of("digits_m", differences={"guided": differing(-1.0), "control": differing(-6.6)}),
        summary_of("digits_var", differences={"guided": differing(3.6), "control": differing(-6.6)}),
    ]
    stream = io.StringIO()
    last_words(Console(stream), "digits", sizes, 80)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    last = "\n".join(lines[-12:])
    assert "digits_s    FID 17.10  ≈ equal to guided 18.00: -0.10 (95 %: -0.40 to +0.20)" in last
    assert "digits_m    FID 17.10  ✓ better than guided 18.00: -1.00 (95 %: -1.30 to -0.70)" in last
    assert "digits_var  FID 17.10  ✗ WORSE than guided 18.00: +3.60 (95 %: +3.30 to +3.90)" in last
    assert last.count("✓ better than control 23.70: -6.60 (95 %: -6.90 to -6.30)") == 3
    assert "next: digits_s: λ is at the lower end of what was searched (0.5 to 20)" in last
    assert "next: digits_var: more --trials" in last
    assert "search.space.lambda.low=0.08" in last
    assert "next: one training seed" in last
    assert "Against the guided base: ✗ WORSE: digits_var; ≈ equal: digits_s;" in stream.getvalue()


def test_a_size_of_version_0_1_0_is_told_by_its_ratio():
    assert beside(summary_of(), "guided") == "✓ better than guided 18.00: 0.95 ×"
