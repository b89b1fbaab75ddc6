"""One file with the captions of many pictures: kohya's metadata JSON, and JSON lines.

kohya: ``{path: {"caption": ..., "tags": ..., "image_size": ...}}``. Lines: ``{"image_path": ..., "caption": ...}``,
with the names that other tools use for the same (``file_name``, ``text``). Sizes in it are never trusted. Both are read
entry by entry, so that a file takes no more memory than the captions in it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..core.errors import FormatError
from ..core.files import storage_error
from .json_stream import stream_entries

METADATA_NAMES = (
    "meta_clean.json",
    "meta_lat.json",
    "meta_cap_dd.json",
    "meta_cap.json",
    "metadata.json",
    "metadata.jsonl",
    "data.jsonl",
    "metadata_cache.json",
)
"""Files in a data set folder that are read without being asked for, where a picture has no caption file."""

MAX_METADATA_BYTES = 2 * 2**30
_NAME_KEYS = ("image_path", "file_name", "filename", "path", "image", "key")
_CAPTION_KEYS = ("caption", "text")
_UTF8_MARK = "\ufeff"


class Metadata:
    """Captions by picture: by the whole path, by the path below the folder, or by the name alone."""

    def __init__(self, path: Path, captions: Mapping[str, str]) -> None:
        self.path = path
        self._captions = captions
        self._by_name: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def names(self) -> Iterator[str]:
        """The pictures as the file names them, with ``/``."""
        return iter(self._captions)

    def find(self, folder: Path, name: str) -> str | None:
        """The caption of a picture, or None.

        Args:
            folder: The subset's folder.
            name: The picture's path below it.
        """
        whole = (folder / name).as_posix()
        for key in (whole, name, os.path.splitext(whole)[0], os.path.splitext(name)[0]):
            if key in self._captions:
                return self._captions[key]
        if self._by_name is None:
            self._by_name = {}
            for key, caption in self._captions.items():
                self._by_name.setdefault(key.rpartition("/")[2], caption)
        base = name.rpartition("/")[2]
        return self._by_name.get(base, self._by_name.get(os.path.splitext(base)[0]))


def read_metadata(path: Path) -> Metadata:
    """Reads a metadata file.

    Raises:
        FormatError: Not UTF-8, not JSON, too large, or not captions by picture.
        StorageError: It cannot be read.
    """
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise FormatError(f"the metadata file {path.name} is larger than 2 GiB; split it")
        with open(path, encoding="utf-8-sig") as file:
            is_lines = path.suffix.lower() == ".jsonl"
            captions = dict(_lines(path, file) if is_lines else _entries(path, file))
    except OSError as cause:
        raise storage_error("read", path, cause) from cause
    except UnicodeDecodeError as cause:
        raise FormatError(f"the metadata file {path.name} is not UTF-8 text; save it as UTF-8") from cause
    except FormatError:
        raise
    except (ValueError, RecursionError) as cause:
        raise FormatError(f"the metadata file {path.name} is not valid JSON: {cause}") from cause
    return Metadata(path, captions)


def _entries(path: Path, file: TextIO) -> Iterator[tuple[str, str]]:
    for number, (name, entry) in enumerate(stream_entries(file), start=1):
        if name is None:
            yield _line_entry(path, entry, f"entry {number}")
        elif isinstance(entry, str):
            yield _key(name), entry
        elif isinstance(entry, dict):
            yield _key(name), _caption_of(entry)
        else:
            raise FormatError(
                f"the metadata file {path.name} holds {type(entry).__name__} for {name[:80]!r}; a picture's entry is "
                'an object like {"caption": "..."}'
            )


def _lines(path: Path, file: TextIO) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, start=1):
        text = line.strip().removeprefix(_UTF8_MARK)
        if not text:
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as cause:
            raise FormatError(f"the metadata file {path.name} is not valid JSON in line {number}: {cause}") from cause
        yield _line_entry(path, entry, f"line {number}")


def _line_entry(path: Path, entry: Any, where: str) -> tuple[str, str]:
    names = [entry[key] for key in _NAME_KEYS if isinstance(entry.get(key), str)] if isinstance(entry, dict) else []
    if not names:
        raise FormatError(
            f"the metadata file {path.name} names no picture in {where}; it needs 'image_path' or 'file_name'"
        )
    return _key(names[0]), _caption_of(entry)


def _key(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _caption_of(entry: Mapping[str, Any]) -> str:
    """Caption and tags joined, as kohya's fine-tuning does."""
    captions = [entry[key] for key in _CAPTION_KEYS if isinstance(entry.get(key), str)][:1]
    tags = entry.get("tags")
    if isinstance(tags, list):
        tags = ", ".join(tag for tag in tags if isinstance(tag, str))
    parts = [part.strip() for part in (*captions, tags) if isinstance(part, str) and part.strip()]
    return ", ".join(dict.fromkeys(parts))
