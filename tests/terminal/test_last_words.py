"""Who reads only the last lines of a study knows what is better, how sure that is, and what to do next."""

import io

from cca_ray.contracts import Difference, Edge, SizeSummary
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
    lines = said(sizes)
    assert max(map(len, lines)) <= 80
    last = "\n".join(lines[-12:])
    assert "digits_s    FID 17.10  ≈ equal to guided 18.00: -0.10 (95 %: -0.40 to +0.20)" in last
    assert "digits_m    FID 17.10  ✓ better than guided 18.00: -1.00 (95 %: -1.30 to -0.70)" in last
    assert "digits_var  FID 17.10  ✗ WORSE than guided 18.00: +3.60 (95 %: +3.30 to +3.90)" in last
    assert last.count("✓ better than control 23.70: -6.60 (95 %: -6.90 to -6.30)") == 3
    assert "next: digits_s: λ is at the lower end of what was searched (0.5 to 20)" in last
    assert "next: digits_m: better than both: use winner.pt" in last
    assert "next: digits_var: worse than guidance: search on with more --trials" in last
    assert "search.space.lambda.low=0.08" in last
    assert "next: one training seed" in last
    assert "Against the guided base: ✗ WORSE: digits_var; ≈ equal: digits_s;" in "\n".join(lines)


def test_of_many_sizes_each_has_a_line_so_that_twelve_hold_them_all():
    names = [f"llamagen_{name}" for name in ("b", "l", "xl", "xxl", "3b")] + [f"var_d{n}" for n in (16, 20, 24, 30)]
    sizes = [
        summary_of(name, differences={"guided": differing(guided), "control": differing(-6.5)})
        for name, guided in zip(names, [-5, -1, 0.1, 3.6, 1.5, 1, 1, 1, 1], strict=True)
    ]
    lines = said(sizes[:5])
    assert max(map(len, lines)) <= 80
    first = lines.index("winner minus other, 95 % interval of FID:") + 1
    assert lines[first : first + 5] == [
        "llamagen_b    guided ✓ better -5.30 to -4.70  control ✓ better -6.80 to -6.20",
        "llamagen_l    guided ✓ better -1.30 to -0.70  control ✓ better -6.80 to -6.20",
        "llamagen_xl   guided ≈ equal  -0.20 to +0.40  control ✓ better -6.80 to -6.20",
        "llamagen_xxl  guided ✗ WORSE  +3.30 to +3.90  control ✓ better -6.80 to -6.20",
        "llamagen_3b   guided ✗ WORSE  +1.20 to +1.80  control ✓ better -6.80 to -6.20",
    ]

    sizes[4] = sizes[4].model_copy(update={"edges": (EDGE,)})
    lines = said(sizes)
    assert max(map(len, lines)) <= 80
    first = lines.index("winner minus other, 95 % interval of FID:") + 1
    assert [line.split()[0] for line in lines[first : first + 9]] == names
    assert len(lines) - first <= 12
    assert " ".join(line.strip() for line in lines[first + 9 :]) == (
        "next: look beyond the ends, as told above: llamagen_3b; search on or keep guidance: llamagen_xxl, var_d16, "
        "var_d20, var_d24, var_d30; use winner.pt or search on: llamagen_xl; use winner.pt: llamagen_b, llamagen_l"
    )
    above = " ".join(line.strip() for line in lines[: first - 1])
    assert above.startswith("llamagen_3b: λ, 0.52, lies at the lower end of what was searched (0.5 to 20)")
    assert "search again with --fresh --set search.space.lambda.low=0.08" in above


def said(sizes: list[SizeSummary], width: int = 80) -> list[str]:
    stream = io.StringIO()
    last_words(Console(stream), "digits", sizes, width)
    return stream.getvalue().splitlines()


def test_a_size_of_version_0_1_0_is_told_by_its_ratio():
    assert beside(summary_of(), "guided") == "✓ better than guided 18.00: 0.95 ×"
