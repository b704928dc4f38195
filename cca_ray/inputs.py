"""What users name by a word: the search spaces that come with the project."""

from pathlib import Path

from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path

PACKAGE = Path(__file__).resolve().parent
SPACES = next((p for p in (PACKAGE / "search_spaces", PACKAGE.parent / "search_spaces") if p.is_dir()), PACKAGE)
DEFAULT_SPACES = ("digits_s", "digits_m", "digits_var")


def find_space(name: str) -> Path:
    """A search space's file: a path or URI, or the bare name of one that comes with the project."""
    path = local_path(name)
    pull(path)
    shipped = SPACES / f"{path.stem}.yaml"
    bare = path.parent == Path() and not path.exists()
    return shipped if bare and shipped.exists() else path
