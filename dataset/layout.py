"""How a folder is read: as kohya's parent of ``N_name`` folders, as one such folder, or as a plain folder."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core.errors import InputError
from .images import is_picture_name
from .walk import Guard, Listing, OnSkip, list_folder

LAYOUTS = ("auto", "kohya", "plain")
REG_NAME = "reg"
"""Folder of the regularisation pictures beside ``img``, as kohya's GUI and this pack's export call it."""

MAX_REPEATS = 10_000
"""Largest repeat count; a greater number at the front of a folder's name is no repeat count."""

_REPEAT_NAME = re.compile(r"^([0-9]+)_(.*)$", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PlannedFolder:
    """A folder that becomes a subset: where it lies, its repeats and the text of its name."""

    folder: Path
    repeats: int
    concept: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a folder was read.

    Attributes:
        text: In words for a person.
        folders: The folders to read.
        is_kohya: Whether repeat counts come from names.
        listings: Folders that were listed on the way.
    """

    text: str
    folders: tuple[PlannedFolder, ...]
    is_kohya: bool
    listings: Mapping[Path, Listing] = field(default_factory=dict)


def parse_repeat_name(name: str) -> tuple[int, str] | None:
    """Splits ``10_some name`` into (10, "some name"); None when it is not such a name or the count is not usable."""
    match = _REPEAT_NAME.match(name)
    if match is None or len(match[1]) > 9:
        return None
    repeats = int(match[1])
    return (repeats, match[2].strip()) if 1 <= repeats <= MAX_REPEATS else None


def read_layout(
    folder: Path, *, mode: str, guard: Guard, on_skip: OnSkip, excluded: frozenset[str] = frozenset()
) -> Layout:
    """Decides how a folder is read.

    ``auto``: an ``N_name`` folder with pictures of its own is one subset; a folder that holds ``N_name`` folders is
    kohya's parent, and so is one whose single such sub-folder is (``img`` of kohya's GUI); anything else is plain.

    Args:
        folder: The folder that was asked for.
        mode: One of ``LAYOUTS``; ``kohya`` refuses a folder that auto would read as plain.
        guard: Keeps the reading inside.
        on_skip: Hears of folders and pictures that kohya's layout leaves out.
        excluded: Real paths of folders to leave alone.

    Raises:
        InputError: Kohya's layout was asked for and is not there, or several folders could be meant.
    """
    if mode == "plain":
        return _plain(folder)
    top = list_folder(folder, "", guard)
    found = _layout_of(folder, top, mode=mode, guard=guard, on_skip=on_skip, excluded=excluded)
    return replace(found, listings={folder: top})


def _layout_of(
    folder: Path, top: Listing, *, mode: str, guard: Guard, on_skip: OnSkip, excluded: frozenset[str]
) -> Layout:
    own = parse_repeat_name(folder.name)
    has_pictures = any(is_picture_name(entry.name) for entry in top.files)
    if own is not None and has_pictures:
        return _single(folder, own)
    if _repeat_folders(top):
        return _parent(folder, top, on_skip, excluded, f"Read {folder.name!r} as a kohya folder of N_name folders")
    if own is not None:
        return _single(folder, own)
    if not has_pictures and (inner := _inner_parent(folder, top, guard, excluded)):
        listing = list_folder(inner, "", guard)
        text = f"Read the folder {inner.name!r} in {folder.name!r} as a kohya folder of N_name folders"
        return _parent(inner, listing, on_skip, excluded, text)
    if mode == "kohya":
        raise InputError(
            f"{str(folder)!r} holds no folder named N_name (such as 10_cat: 10 repeats, text 'cat'); "
            "rename its sub-folders so, or choose the layout plain"
        )
    return _plain(folder)


def regularisation_beside(folder: Path, *, mode: str, guard: Guard) -> Path | None:
    """The folder ``reg`` of kohya's GUI beside the one other kohya parent (``img``) in a folder, else None.

    Args:
        folder: The folder that was asked for.
        mode: One of ``LAYOUTS``; a plain folder has none.
        guard: Keeps the reading inside.
    """
    if mode == "plain":
        return None
    top = list_folder(folder, "", guard)
    parents = _parents_in(folder, top, guard, frozenset())
    reg = [name for name in parents if name.casefold() == REG_NAME]
    is_kohya = any(is_picture_name(entry.name) for entry in top.files) or bool(_repeat_folders(top))
    return folder / reg[0] if len(parents) == 2 and len(reg) == 1 and not is_kohya else None


def _plain(folder: Path) -> Layout:
    planned = PlannedFolder(folder=folder, repeats=1, concept="")
    return Layout(text=f"Read {folder.name!r} as a plain folder.", folders=(planned,), is_kohya=False)


def _single(folder: Path, own: tuple[int, str]) -> Layout:
    planned = PlannedFolder(folder=folder, repeats=own[0], concept=own[1])
    text = f"Read {folder.name!r} as one kohya folder: {own[0]} repeats, text {own[1]!r}."
    return Layout(text=text, folders=(planned,), is_kohya=True)


def _parent(folder: Path, top: Listing, on_skip: OnSkip, excluded: frozenset[str], text: str) -> Layout:
    planned = []
    for name in top.folders:
        if name not in top.open_folders:
            on_skip(name + "/", "it is hidden, kept by the system, or a link out of the data set folder")
            continue
        if os.path.normcase(os.path.realpath(folder / name)) in excluded:
            on_skip(name + "/", "it is used for regularisation")
            continue
        parsed = parse_repeat_name(name) or _bare_number(name)
        if parsed is None:
            on_skip(
                name + "/", f"its name does not begin with a repeat count of 1 to {MAX_REPEATS} and '_' (as 10_cat)"
            )
            continue
        planned.append(PlannedFolder(folder=folder / name, repeats=parsed[0], concept=parsed[1]))
    for entry in top.files:
        if is_picture_name(entry.name):
            on_skip(
                entry.name, "it lies beside the N_name folders, where kohya's scripts do not look; move it into one"
            )
    return Layout(text=f"{text} ({len(planned)}).", folders=tuple(planned), is_kohya=True)


def _inner_parent(folder: Path, top: Listing, guard: Guard, excluded: frozenset[str]) -> Path | None:
    """The one sub-folder that is a kohya parent, as in kohya's GUI (img, log, model)."""
    found = _parents_in(folder, top, guard, excluded)
    if len(found) > 1:
        raise InputError(
            f"{str(folder)!r} holds several folders with N_name folders in them ({', '.join(found)}); open one of "
            "them, and give another as the regularisation folder if it is one"
        )
    return folder / found[0] if found else None


def _parents_in(folder: Path, top: Listing, guard: Guard, excluded: frozenset[str]) -> list[str]:
    """Names of the sub-folders that hold ``N_name`` folders."""
    return [
        name
        for name in top.open_folders
        if os.path.normcase(os.path.realpath(folder / name)) not in excluded
        and _repeat_folders(list_folder(folder / name, name, guard))
    ]


def _repeat_folders(listing: Listing) -> list[str]:
    return [name for name in listing.open_folders if parse_repeat_name(name) is not None]


def _bare_number(name: str) -> tuple[int, str] | None:
    """A folder called just ``10``: kohya's scripts take it for 10 repeats without a text."""
    return parse_repeat_name(name + "_") if name.isdecimal() else None
