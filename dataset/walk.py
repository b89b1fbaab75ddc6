"""Walking a data set folder: natural order on every system, no way out through links, every refusal with a reason."""

import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .images import is_picture_name

OnSkip = Callable[[str, str], None]
"""Called with a path below the opened folder and the reason why it is not used."""

_DIGITS = re.compile(r"([0-9]+)")
_THUMBNAIL_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information"})
MAX_DEPTH = 64
"""Deeper nesting is not followed."""
_MANY_FILES = 2048
_FILES_AT_ONCE = 512
_THREADS = 16
_SLOW_S = 20e-6
"""A file's size and time take about 2 microseconds when the system remembers them."""


class FileEntry(NamedTuple):
    """A file of a folder."""

    name: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """One folder's content; files by plain name, folders in natural order.

    Attributes:
        relative: Path below the walked folder with ``/``; empty for that folder itself.
        files: Its files.
        refused: Files that must not be opened, with the reason.
        folders: Names of its sub-folders, those that are not followed among them.
        open_folders: Names of the sub-folders that may be followed.
        skips: What is refused and worth telling: its path below the walked folder, and the reason.
    """

    relative: str
    files: tuple[FileEntry, ...]
    refused: Mapping[str, str]
    folders: tuple[str, ...]
    open_folders: tuple[str, ...]
    skips: tuple[tuple[str, str], ...] = ()

    def below(self, name: str) -> str:
        """Path of something in this folder, below the walked folder."""
        return f"{self.relative}/{name}" if self.relative else name


class Guard:
    """Decides whether a path is still inside the opened folder, whatever links it goes through."""

    def __init__(self, root: Path, allowed: Callable[[Path], bool] | None = None) -> None:
        self._root = os.path.realpath(root)
        self._allowed = allowed

    def lets_in(self, path: str) -> bool:
        """Whether the real path lies in the opened folder, or where the owner allows it."""
        real = os.path.realpath(path)
        return is_within(real, self._root) or (self._allowed is not None and self._allowed(Path(real)))


def is_within(real_path: str, real_root: str) -> bool:
    """Whether one real path is another or lies below it."""
    path, root = os.path.normcase(real_path), os.path.normcase(real_root)
    return path == root or path.startswith(root if root.endswith(os.sep) else root + os.sep)


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key for names: 2 before 10, case and Unicode form ignored unless nothing else differs."""
    parts = _DIGITS.split(name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold())
    numbered = tuple(int(part) if place % 2 else part for place, part in enumerate(parts))
    return (numbered, name)


def list_folder(path: Path, relative: str, guard: Guard) -> Listing:
    """Lists one folder. Links out of the data set, hidden things and special files are refused with a reason."""
    plain: list[os.DirEntry[str]] = []
    refused: dict[str, str] = {}
    folders: list[str] = []
    open_folders: list[str] = []
    skips: list[tuple[str, str]] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.name.isascii() and entry.name[0] != "." and entry.is_file(follow_symlinks=False):
                        plain.append(entry)
                    elif reason := _refused_file(entry, guard):
                        refused[entry.name] = reason
                    else:
                        plain.append(entry)
                except OSError as error:
                    refused[entry.name] = f"it cannot be read ({error.strerror})"
    except OSError as error:
        skips.append((f"{relative}/" if relative else ".", f"the folder cannot be read ({error.strerror})"))
    files = _with_facts(plain, refused)
    folders.sort(key=natural_key)
    for name in folders:
        if reason := _refused_folder(name, os.path.join(path, name), guard):
            skips.append((f"{relative}/{name}/" if relative else f"{name}/", reason))
        else:
            open_folders.append(name)
    for name in sorted(refused, key=natural_key):
        if is_picture_name(name):
            skips.append((f"{relative}/{name}" if relative else name, refused[name]))
    files.sort()
    return Listing(relative, tuple(files), refused, tuple(folders), tuple(open_folders), tuple(skips))


def _with_facts(entries: list["os.DirEntry[str]"], refused: dict[str, str]) -> list[FileEntry]:
    """Size and time of files. Of many they are asked for in the order of the disk, and together where that is slow."""

    def asked(part: list["os.DirEntry[str]"]) -> list[FileEntry]:
        found = []
        for entry in part:
            try:
                status = entry.stat()
            except OSError as error:
                refused[entry.name] = f"it cannot be read ({error.strerror})"
            else:
                found.append(FileEntry(entry.name, status.st_size, status.st_mtime_ns))
        return found

    if os.name == "nt" or len(entries) < _MANY_FILES:  # Windows has told it with the name
        return asked(entries)
    entries.sort(key=os.DirEntry.inode)
    start_s = time.perf_counter()
    files = asked(entries[:_FILES_AT_ONCE])
    is_slow = time.perf_counter() - start_s > _FILES_AT_ONCE * _SLOW_S
    parts = [entries[start : start + _FILES_AT_ONCE] for start in range(_FILES_AT_ONCE, len(entries), _FILES_AT_ONCE)]
    if is_slow:  # a network or a disk that has to be read: several threads wait at the same time
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            answers = list(pool.map(asked, parts))
    else:
        answers = [asked(part) for part in parts]
    for answer in answers:
        files += answer
    return files


def walk_folder(
    folder: Path,
    *,
    guard: Guard,
    on_skip: OnSkip,
    recursive: bool,
    excluded: frozenset[str] = frozenset(),
    known: Mapping[Path, Listing] | None = None,
) -> Iterator[Listing]:
    """Lists a folder and, where asked, everything below it: a folder's files first, then its sub-folders in order.

    Args:
        folder: Where to begin.
        guard: Keeps the walk inside.
        on_skip: Hears of everything that is refused.
        recursive: Follow sub-folders.
        excluded: Real paths (normalised case) of folders that are left alone, e.g. the regularisation folder.
        known: Listings that were just made, by folder, so that a large folder is not listed twice.
    """
    pending = [""]
    visited = set(excluded)
    while pending:
        relative = pending.pop()
        path = folder / relative if relative else folder
        real = os.path.normcase(os.path.realpath(path))
        if real in visited:
            reason = "it is used for regularisation" if real in excluded else "it was reached before through a link"
            on_skip(f"{relative}/", reason)
            continue
        visited.add(real)
        listing = (known or {}).get(path)
        if listing is None or listing.relative != relative:
            listing = list_folder(path, relative, guard)
        for shown, reason in listing.skips:
            on_skip(shown, reason)
        yield listing
        if not recursive:
            continue
        if relative.count("/") >= MAX_DEPTH:
            on_skip(f"{relative}/", f"sub-folders deeper than {MAX_DEPTH} are not followed")
            continue
        pending.extend(listing.below(name) for name in reversed(listing.open_folders))


def _refused_folder(name: str, path: str, guard: Guard) -> str:
    """Why a folder is not followed; empty when it may be."""
    if not _is_unicode(name):
        return "its name is not valid Unicode; rename it"
    if name.startswith("."):
        return "it is hidden (its name begins with a dot)"
    if name.casefold() in _THUMBNAIL_FOLDERS:
        return "it is kept by the system (thumbnails or deleted files)"
    # Junctions on Windows are not links to Python before 3.12, so the real path of every folder is compared.
    if not guard.lets_in(path):
        return "it is a link that leads out of the data set folder; copy the folder instead"
    return ""


def _refused_file(entry: "os.DirEntry[str]", guard: Guard) -> str:
    """Why a file is not used; empty when it may be."""
    if not _is_unicode(entry.name):
        return "its name is not valid Unicode; rename it"
    if entry.name.startswith(".") and not entry.name.endswith("_meta.json"):  # waifuc's metadata is hidden
        return "it is hidden (its name begins with a dot)"
    if entry.is_symlink():
        if not os.path.exists(entry.path):
            return "it is a link that leads nowhere"
        if not guard.lets_in(entry.path):
            return "it is a link that leads out of the data set folder; copy the file instead"
    if not entry.is_file():
        return "it is not an ordinary file"
    return ""


def _is_unicode(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
