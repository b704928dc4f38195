"""Names and links that no list of images could hold: they are refused, with the place, before anything is listed."""

import os
from pathlib import Path

from pyarrow import fs

from cca_ray.errors import ConfigError


def refuse_odd_name(where: str, name: str) -> None:
    """ConfigError, with the name made visible, if it is not UTF-8: no manifest could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = repr(name).replace(r"\udc", r"\x")  # as a byte that is none is kept in a file's name
        raise ConfigError(f"{where}: the name {shown} is not UTF-8; rename it") from None


def refuse_odd_paths(where: str, filesystem: fs.FileSystem, root: str) -> None:
    """ConfigError if a local name is not UTF-8, or a link leads nowhere or to a folder that contains it.

    Looks also below links to folders, as pyarrow does, which passes over what leads nowhere, and ends loops late.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    # Of each folder, where it really lies, after the folders whose links led there.
    folders: list[tuple[str, tuple[Path, ...]]] = [(root, (Path(root).resolve(),))]
    while folders:
        folder, way = folders.pop()
        for entry in os.scandir(folder):  # which says what is a link without another look at the disk
            refuse_odd_name(folder, entry.name)
            if not entry.is_symlink():
                if entry.is_dir():
                    folders.append((entry.path, (*way[:-1], way[-1] / entry.name)))
                continue
            leads_on = os.path.exists(entry.path)
            if leads_on and entry.is_dir():
                target = Path(entry.path).resolve()
                leads_on = not any(passed.is_relative_to(target) for passed in way)
                folders.append((entry.path, (*way, target)))
            if not leads_on:
                raise ConfigError(f"{where}: the link {entry.path} leads nowhere, or back to a folder that contains it")
