"""A storage that was moved or copied: MLflow's records in its own database name the old place, and follow.

MLflow makes every location absolute, and has no call that changes one. So this is the one file that writes to MLflow's
tables, and only to the columns named here; a test holds them against the schema.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from cca_ray.storage.uris import is_copy

PLACE = sa.column("artifact_location", sa.String)
EXPERIMENTS = sa.table("experiments", PLACE)
# Where MLflow keeps files, besides the experiment's own location.
PLACES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def beside(uri: str, artifacts: Path) -> Path | None:
    """The SQLite file of this URI, if it lies in the storage whose artifacts these are, and so moves with them."""
    if not uri.startswith("sqlite:"):
        return None
    file = make_url(uri).database
    return Path(file) if file and Path(file).resolve().parent == artifacts.resolve().parent else None


def folder_of(location: str) -> Path | None:
    """Of a location on this machine."""
    url = urlsplit(location)
    return Path(url2pathname(url.path)) if url.scheme in ("", "file") else None


def there(location: str) -> bool:
    folder = folder_of(location)
    return folder is not None and folder.exists()


@contextmanager
def opened(database: Path) -> Iterator[Connection]:
    """In one transaction."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(database)))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def others(connection: Connection, artifacts: Path) -> dict[str, Path]:
    """The locations of experiments that are another folder of this name, and that folder."""
    places = connection.scalars(sa.select(PLACE).select_from(EXPERIMENTS).distinct())
    folders = {old: folder_of(old) for old in places if old != artifacts.as_uri()}
    return {old: folder for old, folder in folders.items() if folder is not None and folder.name == artifacts.name}


def left_behind(storage: Path) -> str:
    """What to tell of a storage that has moved, while the records in its database name the old place; else nothing."""
    database, artifacts = storage.resolve() / "mlflow.db", storage.resolve() / "mlartifacts"
    if not database.is_file() or is_copy(database):
        return ""
    try:
        with opened(database) as connection:
            gone = [folder for folder in others(connection, artifacts).values() if not folder.exists()]
    except sa.exc.SQLAlchemyError:  # no database of MLflow's, or one that is locked: for those to tell who write to it
        return ""
    if not gone:
        return ""
    return (
        f"MLflow: its records name {gone[0].parent}, from where the storage has moved, so models cannot be loaded; any "
        "study that runs here, or `cca-ray report`, updates them"
    )


def follow(database: Path, artifacts: Path) -> list[str]:
    """Let what names another folder of this name name this one, in one transaction; what to say of it, in lines.

    What has files only at the old place, as when a storage was continued after its move, stays there.
    """
    now, lines = artifacts.as_uri(), []
    with opened(database) as connection:
        for old, folder in others(connection, artifacts).items():
            connection.execute(sa.update(EXPERIMENTS).where(PLACE.in_([old])).values(artifact_location=now))
            counts = [rewrite(connection, *column, f"{old}/", f"{now}/") for column in PLACES]
            before, after = (json.dumps({"uri": f"{storage.parent}/"})[:-2] for storage in (folder, artifacts))
            rewrite(connection, "datasets", "dataset_source", before, after)
            lines.append(
                f"MLflow: the storage has moved from {folder.parent} to {artifacts.parent}: updated the records of "
                f"{counts[0]} runs, {counts[1]} models and {counts[2]} versions"
            )
    return lines


def rewrite(connection: Connection, table: str, column: str, old: str, new: str) -> int:
    """Put one beginning in place of another; of how many different values."""
    field = sa.column(column, sa.String)
    rows, changed = sa.table(table, field), 0
    begins = sa.func.substr(field, 1, len(old)) == old  # LIKE knows wildcards, which a path may hold
    for value in list(connection.scalars(sa.select(field).select_from(rows).where(begins).distinct())):
        moved = new + value[len(old) :]
        if there(moved) or not there(value):
            connection.execute(sa.update(rows).where(field == value).values({column: moved}))
            changed += 1
    return changed
