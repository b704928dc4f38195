"""The local place of a URI, such as s3://bucket/runs, in this node's cache; and the URI of such a place.

The cache's folders are those of the URI, so that nothing else need remember it: scheme and query, bucket, path. Here
is also how a path is written where more than letters count: in the URI of a database, on a command line.
"""

import errno
import os
import re
import shlex
import stat
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from cca_ray.errors import ConfigError, is_secret
from cca_ray.space_file import is_uri

COPIES = "copies"  # below the cache: files as at their URIs
NO_AUTHORITY = "-"  # the folder of what lies below file:///
OF_THIS_NODE = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)))  # what its disk says
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, bytes that are not UTF-8, ends of lines


def cache_folder() -> Path:
    """On this node; $CCA_RAY_CACHE, or below the temporary folder."""
    if chosen := os.environ.get("CCA_RAY_CACHE"):
        return Path(chosen).resolve()
    return Path(tempfile.gettempdir()).resolve() / f"cca_ray-{os.getuid()}"  # not resolved: a link is refused


def own_cache() -> Path:
    """The cache's folder, made for its user alone, before anything is written there.

    ConfigError if the one below the temporary folder, whose name anyone can tell, was set up by another user.
    $CCA_RAY_CACHE is its user's own choice, and may be shared.
    """
    folder = cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not os.environ.get("CCA_RAY_CACHE") and (why := open_to_others(folder)):
        raise ConfigError(f"{folder}: {why}, so what is there may be theirs; set CCA_RAY_CACHE to a folder of yours")
    return folder


def open_to_others(folder: Path) -> str | None:
    """How other users could write there, or put another folder in its place; None if they cannot."""
    us, found = os.getuid(), folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is a link, which another user may have made"
    if found.st_uid != us:
        return "belongs to another user"
    if found.st_mode & 0o022:
        return "can be written to by other users"
    folder.chmod(0o700)
    for parent in folder.parents:
        found = parent.stat()
        if found.st_uid not in (0, us):
            return f"lies in {parent}, which belongs to another user"
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return f"lies in {parent}, where other users may rename it"
    return None


def at_home(path: str | Path) -> Path:
    """With `~` as a shell reads it, which does not reach an option's `=` or a search space."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def refuse_empty(place: str | Path) -> None:
    """ConfigError if a path is empty, as a shell gives a variable that is not set: it would be the working folder."""
    if not str(place):
        raise ConfigError("an empty path: is a variable such as $IMAGES not set? For the working folder give '.'")


def refuse_unprintable(place: str) -> None:
    """ConfigError if no line, manifest or report could hold this path."""
    if any(unicodedata.category(character) in UNPRINTABLE for character in place):
        raise ConfigError(f"{place!a}: the path holds a line's end, a control character or what is not UTF-8")


def local_path(place: str | Path) -> Path:
    """The local path of a URI; of a path its own, `~` being the home.

    ConfigError if a URI has credentials or cannot be read, or if a path is not printable.
    """
    if not is_uri(place):
        refuse_unprintable(str(at_home(place).absolute()))
        return at_home(place)
    refuse_unprintable(unquote(str(place), errors="surrogateescape"))
    try:
        uri = urlsplit(str(place))
        password = uri.password
    except ValueError as error:
        raise ConfigError(f"{place}: not a URI: {error}") from None
    if password is not None or any(is_secret(pair.partition("=")[0]) for pair in uri.query.split("&")):
        raise ConfigError(
            f"{uri.scheme}://...@{uri.netloc.rpartition('@')[2]}{uri.path}: the URI has credentials, which would be "
            "kept with the study; put them in the environment, such as AWS_ACCESS_KEY_ID, or a role of the node"
        )
    if not uri.scheme:
        raise ConfigError(f"{place}: not a URI: expected SCHEME://PLACE, such as s3://bucket/runs")
    if "#" in str(place):
        raise ConfigError(f"{place}: a URI with '#'; write %23 for it")
    path = PurePosixPath(unquote(uri.path).lstrip("/"))
    if ".." in (*path.parts, uri.netloc):
        raise ConfigError(f"{place}: a URI with '..'")
    kind = uri.scheme + (f",{uri.query}" if uri.query else "")
    return own_cache() / COPIES / as_name(kind) / (as_name(uri.netloc) or NO_AUTHORITY) / path


def path_below(folder: Path, name: str) -> PurePosixPath:
    """Where in a folder something lies that others have named. ConfigError if it would not: an object has any name."""
    if "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise ConfigError(f"{to_uri(folder)}: {name!r} is there, whose name is no path below it; remove or rename it")
    return PurePosixPath(name)


def as_name(text: str) -> str:
    """As the name of a folder in the cache, never `.`, `..` or `NO_AUTHORITY`."""
    if not text.strip(".") or text == NO_AUTHORITY:
        return "".join(f"+{ord(character):02X}" for character in text)
    return quote(text, safe=",=:@").replace("%", "+")


def of_name(name: str) -> str:
    """What `as_name` made a name of."""
    return unquote(name.replace("+", "%"))


def copy_of(path: str | Path) -> tuple[str, str, str, str] | None:
    """Scheme, authority, path and query of the URI of which this path is the local copy; None if it is of none."""
    root = cache_folder() / COPIES
    if not Path(path).is_relative_to(root) or len(Path(path).relative_to(root).parts) < 2:
        return None
    kind, authority, *parts = Path(path).relative_to(root).parts
    scheme, _, query = of_name(kind).partition(",")
    return scheme, "" if authority == NO_AUTHORITY else of_name(authority), "/".join(parts), query


def to_uri(path: str | Path) -> str:
    """The URI of a local copy; any other path as it is."""
    found = copy_of(path)
    if found is None:
        return str(path)
    scheme, authority, below, query = found
    return f"{scheme}://{authority}/{quote(below)}{f'?{query}' if query else ''}"


def naming_uris(text: str) -> str:
    """The same with local copies named by their URIs, which are all that a person knows of.

    But not where this node's disk fails: then the copy is what is wrong.
    """
    if any(reason in text for reason in OF_THIS_NODE):
        return text
    copies = re.escape(str(cache_folder() / COPIES))
    return re.sub(rf"{copies}/[^\s'\"]*[^\s'\".:,;)]", lambda found: to_uri(found[0]), text)


def is_copy(path: str | Path) -> bool:
    return copy_of(path) is not None


def database_uri(path: Path) -> str:
    """Of an SQLite file, as SQLAlchemy reads it.

    Escaped is only what would be misread, by Optuna `{}`: MLflow makes the folder that such a URI seems to name.
    """
    return "sqlite:///" + re.sub("[%?{}]", lambda found: f"%{ord(found[0]):02X}", str(path))


def command_line(*words: str | Path) -> str:
    """A command as it can be pasted into a shell; paths as `to_uri` names them."""
    return shlex.join(to_uri(word) if isinstance(word, Path) else word for word in words)
