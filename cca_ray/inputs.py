"""What users name by a word: the search spaces that come with the project."""

import sys
from difflib import get_close_matches
from pathlib import Path

from cca_ray.errors import ConfigError
from cca_ray.storage.mirror import exists, pull
from cca_ray.storage.uris import local_path, to_uri

PACKAGE = Path(__file__).resolve().parent
SPACES = next((p for p in (PACKAGE / "search_spaces", PACKAGE.parent / "search_spaces") if p.is_dir()), PACKAGE)
DEFAULT_SPACES = ("digits_s", "digits_m", "digits_var")


def meant(name: str) -> str:
    """To be added to a line: the name that comes with the project, if one is near to this."""
    near = get_close_matches(name, [path.stem for path in SPACES.glob("*.yaml")], 1)
    return f"; did you mean {near[0]}?" if near else ""


def find_space(name: str) -> Path:
    """A search space's file: a path or URI, or the bare name of one that comes with the project. ConfigError if none.

    A bare name without an ending is always that of the project's, whatever else is called so in the working directory.
    Where there are both, stderr says which is taken.
    """
    path, taken = local_path(name), file_of(name)
    pull(path)
    if not taken.exists():
        raise ConfigError(f"{path}: no such search-space file{meant(path.stem)}")
    if not could_be_shipped(path, name):
        return taken
    shipped = SPACES / f"{path.stem}.yaml"
    others = [other for other in (path, path.with_suffix(".yaml"), shipped) if other.is_file()]
    for other in others:
        if not other.samefile(taken):
            whose = "the one that comes with the project" if taken == shipped else f"./{taken} in this folder"
            print(f"{name}: {whose} is taken, not {other if other == shipped else f'./{other}'}", file=sys.stderr)
            break
    return taken


def could_be_shipped(path: Path, name: str) -> bool:
    return path.name == name and path.suffix in ("", ".yaml") and (SPACES / f"{path.stem}.yaml").exists()


def file_of(name: str) -> Path:
    """The file that a name means, whether or not it is there; see `find_space`."""
    path = local_path(name)
    if could_be_shipped(path, name) and not (path.suffix and path.is_file()):
        return SPACES / f"{path.stem}.yaml"
    return path


def refuse_missing(path: str | Path | None) -> None:
    """ConfigError if a file is given that is not there: before a base is made, which takes a minute."""
    if path is not None and not exists(local_path(path)):
        raise ConfigError(f"{path}: no such file")


def name_anywhere(name: str) -> str:
    """What names the same search space in any working directory."""
    path = file_of(name)
    return path.stem if path.parent == SPACES else to_uri(path.absolute())
