"""Numbers and settings as people write them."""

import re


def number(value: float) -> str:
    """1e-5, 0.003, 20, 4153, 111M."""
    if value >= 1e4:
        power, unit = next((p, u) for p, u in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= p)
        return f"{value / power:.3g}{unit}"
    text = f"{value:.0f}" if value >= 1e3 else f"{value:.3g}"
    return re.sub(r"e-0?", "e-", text)


def score(value: float) -> str:
    """Three digits, also those that are 0."""
    return f"{value:#.3g}".rstrip(".") if value < 1e3 else f"{value:.0f}"


def setting_name(name: str) -> str:
    """λ, learning rate."""
    return "λ" if name == "lambda" else name.replace("_", " ")
