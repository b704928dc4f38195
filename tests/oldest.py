"""The lowest versions of our dependencies that pyproject.toml allows, as constraints for pip: `python -m tests.oldest`.

`.ci/nightly` installs these: a bound that nobody has tried is a guess.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirement: Requirement) -> str:
    """Of `scipy>=1.15`: `scipy==1.15.*`, of which pip takes the last repair."""
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={bound}.*"


def main() -> None:
    with PROJECT.open("rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    print(*(lowest(Requirement(text)) for text in needed), sep="\n")


if __name__ == "__main__":
    main()
