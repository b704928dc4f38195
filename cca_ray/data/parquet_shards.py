"""Images in Parquet shards: rows of `image` and `label`, as of Hugging Face."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cca_ray.errors import ConfigError

COLUMNS = {"image": ("image", "jpg", "png"), "label": ("label", "cls")}
LEAST_IMAGE_BYTES = 8  # of a row, in the mean
MOST_GROUP_BYTES, MOST_UNPACKED = 2**30, 4  # of a row group's images: this, or so many times what the file has
FOOTER_END = 8  # bytes: the footer's length, and four that end every file


def column(schema: pa.Schema, what: str, path: str) -> str:
    found = [name for name in COLUMNS[what] if name in schema.names]
    if not found:
        raise ConfigError(f"{path}: no column {' or '.join(COLUMNS[what])}; it has {', '.join(schema.names)}")
    return found[0]


def has_images(file: Any) -> bool:
    return any(name in COLUMNS["image"] for name in pq.ParquetFile(file).schema_arrow.names)


@dataclass(frozen=True)
class Row:
    """Where an image is, and its class: a name, or a number from 0."""

    group: int
    row: int  # of the group
    key: str | int


def list_rows(file: Any, path: str, label_key: str | None, labelled: bool) -> list[Row]:
    """Rows of `image` (bytes, or a struct with `bytes`, as of Hugging Face) and, if `labelled`, of `label`.

    ConfigError if there are no such columns, or more rows than the file has room for.
    """
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    if parquet.metadata.num_rows > file.size() // LEAST_IMAGE_BYTES:  # each would be an object here
        raise ConfigError(f"{path}: claims {parquet.metadata.num_rows:,} images, which do not fit into its bytes")
    kind = schema.field(column(schema, "image", path)).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ConfigError(f"{path}: its images are {kind}; expected bytes, or a struct with bytes")
    labels = labels_of(file, path, schema, label_key) if labelled else ["any"] * parquet.metadata.num_rows
    places = [(group, row) for group in range(parquet.num_row_groups)
              for row in range(parquet.metadata.row_group(group).num_rows)]  # fmt: skip
    return [Row(group, row, key) for (group, row), key in zip(places, labels, strict=True)]


def labels_of(file: Any, path: str, schema: pa.Schema, label_key: str | None) -> list[Any]:
    """Row by row. ConfigError if one is neither a number nor a name."""
    if label_key is not None and label_key not in schema.names:
        raise ConfigError(f"{path}: no column {label_key!r}; it has {', '.join(schema.names)}")
    labels = keys_of(file, label_key or column(schema, "label", path))
    if bad := [row for row, key in enumerate(labels) if not isinstance(key, int | str) or key == ""]:
        found = labels[bad[0]]
        what = "no label" if found in (None, "") else f"the label {str(found)[:40]}"
        raise ConfigError(f"{path}: row {bad[0]} has {what}; expected a class number or name")
    return labels


def keys_of(file: Any, name: str) -> list[Any]:
    """Labels, row by row. A name that comes again and again is one object, as it is one in the file."""
    chunks = pq.ParquetFile(file, read_dictionary=[name]).read(columns=[name])[0].chunks
    keys: list[Any] = []
    for chunk in chunks:
        if pa.types.is_dictionary(chunk.type):
            names = chunk.dictionary.to_pylist()
            keys += [None if i is None else names[i] for i in chunk.indices.to_pylist()]
        else:
            keys += chunk.to_pylist()
    return keys


def images_of_group(file: Any, path: str, group: int) -> list[bytes]:
    """The images of one row group. ConfigError if they are many times what the file holds."""
    parquet = pq.ParquetFile(file)
    name = column(parquet.schema_arrow, "image", path)
    limit = max(MOST_GROUP_BYTES, MOST_UNPACKED * file.size())
    images: list[bytes] = []
    # One at a time: a row of a few bits can be an image of any size, by way of the group's dictionary.
    for batch in parquet.iter_batches(batch_size=1, row_groups=[group], columns=[name]):
        (value,) = batch[0].to_pylist()
        images.append(value["bytes"] if isinstance(value, dict) else value)
        limit -= len(images[-1] or b"")
        if limit < 0:
            raise ConfigError(f"{path}: row group {group} unpacks to many times what the file holds")
    return images


def footer(file: Any) -> bytes:
    """It has the size of every piece of the file."""
    file.seek(file.size() - FOOTER_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(file.size() - FOOTER_END - length)
    return bytes(file.read(length))
