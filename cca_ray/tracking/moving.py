"""A storage that was moved or copied: MLflow's records in its own database name the old place, and follow.

MLflow makes every location absolute, and has no call that changes one. So this is the one file that writes to MLflow's
tables, and only to the columns named here; a test holds them against the schema.
"""

import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

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


def follow(database: Path, artifacts: Path) -> list[str]:
    """Let what names another folder of this name name this one, in one transaction; what to say of it, in lines.

    What has files only at the old place, as when a storage was continued after its move, stays there.
    """
    engine, now, lines = sa.create_engine(sa.URL.create("sqlite", database=str(database))), artifacts.as_uri(), []
    place = sa.column("artifact_location", sa.String)
    experiments = sa.table("experiments", place)
    with engine.begin() as connection:
        known = {location: folder_of(location) for location in connection.scalars(sa.select(place).distinct())}
        for old, folder in known.items():
            if folder is None or old == now or folder.name != artifacts.name:
                continue
            connection.execute(sa.update(experiments).where(place == old).values(artifact_location=now))
            counts = [rewrite(connection, *column, f"{old}/", f"{now}/") for column in PLACES]
            before, after = (json.dumps({"uri": f"{storage.parent}/"})[:-2] for storage in (folder, artifacts))
            rewrite(connection, "datasets", "dataset_source", before, after)
            lines.append(
                f"MLflow: the storage was at {folder.parent} and is at {artifacts.parent}: the records of "
                f"{counts[0]} runs, {counts[1]} models and {counts[2]} versions follow it"
            )
    engine.dispose()
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
