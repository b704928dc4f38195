"""What we install may be used with our licence, and passed on: read from the metadata of every package."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

# Permissive ones, as SPDX names them.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC",
    "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip
# As packages say it that were made before there was a field for SPDX: a classifier, or a line of text.
SPELLINGS = {
    "3-Clause BSD License", "Apache 2.0", "Apache License, Version 2.0", "Apache Software License", "BSD",
    "BSD License", "ISC License (ISCL)", "MIT License", "Python Software Foundation License",
}  # fmt: skip
# What else there is: what the metadata says, and why it is right.
EXCEPTIONS = {
    "certifi": ("Mozilla Public License 2.0 (MPL 2.0)", "a list of authorities; a changed file must be passed on"),
    "tqdm": ("MPL-2.0 AND MIT", "as certifi; used unchanged"),
    "huey": ("", "the file LICENSE in the package is MIT's text"),
    "skops": ("OSI Approved", "the file LICENSE in the package is MIT's text"),
}


def refused(said: str) -> list[str]:
    """The licences in what a package says, all of which must be allowed, that are not."""
    found = [] if said else ["nothing"]
    for part in said.split("; "):
        if part not in SPELLINGS:
            terms = (term.strip() for term in re.split(r"\bAND\b|\bOR\b|[()]", part))
            found += [term for term in terms if term and term not in ALLOWED]
    return found


def said_by(name: str) -> str:
    """License-Expression; of older packages the classifiers, or else the field that holds anything."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or [] if text[:9] == "License :"]
    return "; ".join(classifiers) or str(metadata.get("License") or "").strip().partition("\n")[0]


def closure(requirements: list[str]) -> set[str]:
    """What these install here, and what that does."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {seen for of, seen in found if of == name}:
            found.add((name, extra))
            for needed in map(Requirement, distribution(name).requires or []):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in found}


def packages() -> set[str]:
    """Of pyproject.toml; of clusters' nodes those that are here. What CUDA brings is not: it has NVIDIA's own terms."""
    names = closure(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    for locked in re.findall(r"^([\w.-]+)==", (ROOT / "deploy" / "requirements.lock").read_text(), re.MULTILINE):
        try:
            distribution(locked)
        except PackageNotFoundError:
            continue
        names.add(canonicalize_name(locked))
    return names


def test_every_package_has_a_licence_that_is_allowed():
    found = {name: said_by(name) for name in packages()}
    assert {"torch", "ray", "mlflow", "sqlalchemy", "pydantic-core"} <= set(found)  # what is wanted, and by that
    wrong = {name: said for name, said in found.items() if refused(said) and EXCEPTIONS.get(name, (None,))[0] != said}
    assert wrong == {}, "not among the licences that are allowed; if it may be, say why in EXCEPTIONS"


@pytest.mark.parametrize(
    ("said", "why"),
    [("GPL-3.0-or-later", ["GPL-3.0-or-later"]), ("MIT AND (AGPL-3.0-only)", ["AGPL-3.0-only"]), ("", ["nothing"]),
     ("GNU General Public License v3 (GPLv3); MIT License", ["GNU General Public License v3", "GPLv3"]),
     ("Apache-2.0 WITH LLVM-exception AND MIT", []), ("ISC License (ISCL)", [])],
)  # fmt: skip
def test_what_is_not_allowed_is_found_out(said: str, why: list[str]):
    assert refused(said) == why


def test_no_exception_is_needless():
    assert all(refused(said) for said, _ in EXCEPTIONS.values())
