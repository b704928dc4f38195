"""Images are named by digests; the one that a user builds has none yet, and says so. deploy/pin.sh writes them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import clusters

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "cluster.yaml", *(path for path in (ROOT / "deploy").rglob("*") if path.is_file())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_without_a_digest_is_one_that_says_so(path: Path):
    assert clusters.unpinned(path.read_text()) == []


@pytest.mark.parametrize("name", ["Dockerfile", "kuberay.yaml"])
def test_an_image_without_a_digest_that_does_not_say_so_is_found_out(name: str):
    text = re.sub(r"@sha256:\w+", "", (ROOT / "deploy" / name).read_text().replace("# no digest yet", "#"))
    assert clusters.unpinned(text) != []
    assert clusters.unpinned(re.sub(r"(FROM|image:) (\S+)", rf"\1 \2@sha256:{64 * 'a'}", text)) == []


def test_the_image_that_ours_is_built_on_has_a_digest():
    assert clusters.unpinned((ROOT / "deploy" / "Dockerfile").read_text().replace("# no digest yet", "#")) == []


# Stands for docker, of which the script wants to know digests alone.
REGISTRY = """#!/usr/bin/env bash
[[ "$1 $2 $3" == "buildx imagetools inspect" ]] && echo "$DIGEST"
"""


def pin(folder: Path, name: str, digest: str, registry: str = "example.org:5000/us") -> tuple[int, str, str]:
    """deploy/pin.sh on a copy: exit code, what it says, and the copy then."""
    copy = folder / name
    if not copy.exists():
        copy.write_text((ROOT / "deploy" / name).read_text().replace("YOUR-REGISTRY", registry))
    (folder / "docker").write_text(REGISTRY)
    (folder / "docker").chmod(0o755)
    around = {"PATH": f"{folder}:/usr/bin:/bin", "DIGEST": digest}
    command = [str(ROOT / "deploy" / "pin.sh"), str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, env=around, timeout=60)
    return ended.returncode, ended.stdout + ended.stderr, copy.read_text()


@pytest.mark.parametrize(
    ("name", "line"),
    [("Dockerfile", "FROM rayproject/ray:2.56.0-py311-gpu"), ("kuberay.yaml", "image: example.org:5000/us/cca_ray")],
)
def test_images_are_pinned_and_pinned_again(name: str, line: str, tmp_path: Path):
    before = (ROOT / "deploy" / name).read_text().replace("YOUR-REGISTRY", "example.org:5000/us")
    for letter in "ab":
        code, said, text = pin(tmp_path, name, digest := f"sha256:{64 * letter}")
        assert (code, said.count("\n")) == (0, 1)
        assert text == re.sub(rf"{line}(@sha256:\w+)?", f"{line}@{digest}", before)
        assert text.count(digest) == len(re.findall(f"{line}[@ \n]", before)) > 0
        assert clusters.unpinned(text.replace("# no digest yet", "#")) == []


@pytest.mark.parametrize(
    ("name", "digest", "code", "complaint"),
    [("kuberay.yaml", "sha256:" + 64 * "a", 2, "YOUR-REGISTRY/cca_ray: expected images by"),
     ("Dockerfile", "manifest unknown", 1, "the registry gives no digest, but: manifest unknown")],
)  # fmt: skip
def test_what_has_no_digest_is_not_pinned(name: str, digest: str, code: int, complaint: str, tmp_path: Path):
    found, said, text = pin(tmp_path, name, digest, "YOUR-REGISTRY")
    assert (found, said.count("\n"), text) == (code, 1, (ROOT / "deploy" / name).read_text())
    assert complaint in said
