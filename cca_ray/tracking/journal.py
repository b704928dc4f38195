"""Entries on their way to MLflow: in memory and, with a path, as lines of JSON in a file."""

import json
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]  # what a line of the journal holds: JSON, checked by the method that it is for


def line_of(entry: JsonObject) -> bytes:
    return json.dumps(entry).encode() + b"\n"


REPLACES = {"tags": ("key",), "end": ("key",), "register": ("name", "alias")}  # and by what they tell which


def rest_of(old: JsonObject, new: JsonObject) -> JsonObject | None:
    """What an entry that waits still has to say after a newer one that has arrived; None: nothing."""
    same = REPLACES.get(f"{new.get('do')}")
    if same is None or any(old.get(name) != new.get(name) for name in ("do", *same)):
        return old
    if new["do"] == "tags":
        tags = {name: value for name, value in (old.get("tags") or {}).items() if name not in new["tags"]}
        return {**old, "tags": tags} if tags else None
    return None


class Journal:
    """A queue of entries. What MLflow did not take is set aside, and waits in the file for the next process.

    Files that lie beside the journal, in the same storage, are named from its folder on: a storage may move.
    """

    def __init__(self, path: Path | None):
        """Takes up what the file holds; a last line that was torn by a kill is dropped. Raises OSError."""
        self.path, self.where = path, str(path) if path else "memory"
        self.entries: deque[JsonObject] = deque()
        self.aside: list[JsonObject] = []
        self.file, self.size = None, 0  # size: of the whole lines, in bytes
        self.kept: int | None = 0  # bytes of those set aside, which begin the file; None: it is to be written anew
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            self.size = content.rfind(b"\n") + 1
            self.file = path.open("ab", buffering=0)  # unbuffered: a line is one write
            self.file.truncate(self.size)
            for line in content[: self.size].splitlines():
                with suppress(ValueError, TypeError):  # a disk that lost its power
                    self.entries.append(dict(json.loads(line)))

    def append(self, entry: JsonObject) -> None:
        """Raises OSError if the file cannot take it: then the entry is in memory only."""
        line = line_of(entry)
        self.entries.append(entry)
        if self.file and self.file.write(line) < len(line):  # the disk is full
            self.file.truncate(self.size)  # so that the next line does not join a torn one
            raise OSError("no space left")
        self.size += len(line)

    def pop(self, arrived: bool = True) -> None:
        """Take the first entry off; one that did not arrive is set aside.

        What was set aside before is older than one that arrived, and must not undo it later.
        The file shrinks with the last entry: until then a restart repeats, which does no harm.
        """
        entry = self.entries.popleft()
        if not arrived:
            self.aside.append(entry)
            self.kept = None
        elif self.aside and entry.get("do") in REPLACES:
            rests = (rest_of(old, entry) for old in self.aside)
            self.aside, self.kept = [rest for rest in rests if rest], None
        if not self.entries:
            with suppress(OSError):
                self._shrink()

    def take_up(self) -> int:
        """Put what was set aside back into the queue; how many entries that are."""
        count = len(self.aside)
        if count:
            self.entries.extend(self.aside)
            self.aside, self.kept = [], None
        return count

    def _shrink(self) -> None:
        """Leave in the file only what was set aside."""
        if not self.file or not self.path:
            return
        if self.kept is None and self.aside:
            whole = self.path.with_name(f"{self.path.name}.partial")
            whole.write_bytes(b"".join(map(line_of, self.aside)))
            whole.replace(self.path)
            self.file.close()
            self.file = self.path.open("ab", buffering=0)
            self.kept = self.path.stat().st_size
        self.kept = self.kept or 0
        self.file.truncate(self.kept)
        self.size = self.kept

    def name(self, file: str | Path) -> str:
        """How an entry names this file."""
        whole = Path(file).resolve()
        folder = self.path.parent.resolve() if self.path else None
        beside = folder is not None and whole.is_relative_to(folder.parent)
        return os.path.relpath(whole, folder) if beside else str(whole)

    def find(self, name: str) -> str:
        """The file that an entry names.

        Earlier versions wrote whole paths. Where the storage has moved since, the file is where the longest end of its
        path is found in it.
        """
        if not self.path:
            return name
        folder = self.path.parent.resolve()
        file = Path(os.path.normpath(folder / name))
        ends = (folder.parent.joinpath(*file.parts[first:]) for first in range(1, len(file.parts) - 1))
        return str(file if file.exists() else next((end for end in ends if end.exists()), file))
