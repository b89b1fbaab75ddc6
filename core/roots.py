"""The folders a workflow may name things in.

A workflow is untrusted: it names things below allowed roots and nothing else, whatever links, drive letters or
device names it tries. The real path of both the target and the root decides.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .errors import InputError, StorageError, nearest_names

_RESERVED_NAMES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
_QUOTES = ('"', "'", "\u201c\u201d", "\u2018\u2019", "`")
_DRIVE = re.compile(r"^[A-Za-z]:")
_FORBIDDEN_IN_NEW_NAMES = re.compile(r'[<>"|?*]')
_MAX_SHOWN_CHARS = 120
_ON_WINDOWS = os.name == "nt"


def is_reserved_name(name: str) -> bool:
    """Tells whether a file name means a device on Windows, with or without an ending, e.g. ``aux.txt``."""
    return name.split(".")[0].rstrip(" ").upper() in _RESERVED_NAMES


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The allowed folders by kind.

    Attributes:
        folders: Folders by kind, e.g. ``input``, ``output``, ``datasets``, ``models``, and ``extra`` for those an
            owner lists in the pack's settings file.
        settings_file: That file, for the errors; None where there is none.
    """

    folders: Mapping[str, tuple[Path, ...]]
    settings_file: Path | None = None

    def resolve(
        self, name: str, kinds: Sequence[str], *, must_exist: bool = True, what: str = "data set folder"
    ) -> Path:
        r"""Turns a name that a person or a workflow gave into a real path inside the allowed roots.

        Surrounding spaces and quotes are taken off, ``\`` counts as ``/``. A relative name is looked for below
        each root in order. An absolute path is accepted when its real path lies inside one of the roots.

        Args:
            name: What was given.
            kinds: Kinds of roots to look in, in order.
            must_exist: Whether the thing must be there; if not, the first root takes it.
            what: What is named, for the error's text.

        Returns:
            The real path (links resolved).

        Raises:
            InputError: The name is empty, malformed, reserved, climbs with ``..``, or nothing is there.
            StorageError: The real path lies outside every allowed root; the text says how to allow a folder.
        """
        cleaned = _clean(name, what)
        absolute = _is_absolute(cleaned, name, what)
        _check_parts(cleaned, name, what, new=not must_exist)
        roots = [folder for kind in kinds for folder in self.folders.get(kind, ())]
        if not roots:
            raise StorageError(f"there is no folder for a {what}: no {' or '.join(kinds)} folder is set up")
        outside: Path | None = None
        candidates = [Path(cleaned)] if absolute else [root / cleaned for root in roots]
        if absolute and _ON_WINDOWS and not _lies_below(cleaned, roots):
            candidates, outside = [], Path(cleaned)
        for candidate in candidates if must_exist else candidates[:1]:
            real = _real(candidate)
            if not any(real.is_relative_to(_real(root)) for root in roots):
                outside = outside or real
            elif not must_exist or os.path.exists(real):  # unlike Path.exists: False, too, for names too long
                return real
        if outside is not None and (absolute or not must_exist or os.path.lexists(outside)):
            settings = self.settings_file or "atelier/settings.json in the user folder"
            raise StorageError(
                f"the {what} {_shown(name)} lies outside the allowed folders ({self._words(kinds)}); move it into one "
                f'of them, or let the owner of this machine add its folder to the list "roots" in {settings}, like '
                '{"roots": ["D:/datasets"]}'
            )
        raise InputError(
            f"there is no {what} {_shown(name)} below the allowed folders ({self._words(kinds)})"
            + _nearest_hint(cleaned, roots)
        )

    def contains(self, path: Path) -> bool:
        """Tells whether the real path lies inside the real path of any allowed root."""
        if "\0" in str(path):
            return False
        real = _real(Path(path))
        return any(real.is_relative_to(_real(root)) for root in self._all())

    def _all(self) -> Iterator[Path]:
        for folders in self.folders.values():
            yield from folders

    def _words(self, kinds: Sequence[str]) -> str:
        listed = [f"{kind}: {folder}" for kind in kinds for folder in self.folders.get(kind, ())]
        return "; ".join(dict.fromkeys(listed))


def _clean(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise InputError(f"the name of a {what} must be a text, not {type(name).__name__}")
    cleaned = name.strip()
    while len(cleaned) >= 2 and any(cleaned[0] == quote[0] and cleaned[-1] == quote[-1] for quote in _QUOTES):
        cleaned = cleaned[1:-1].strip()
    if not cleaned:
        raise InputError(f"the name of the {what} is empty; type the name of one below the allowed folders")
    if any(ord(char) < 32 or ord(char) == 127 for char in cleaned):
        raise InputError(f"the name of the {what} {_shown(name)} holds a control character; type it anew")
    try:
        cleaned.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise InputError(f"the name of the {what} holds a character that no file name can hold") from cause
    return cleaned.replace("\\", "/")


def _is_absolute(cleaned: str, name: str, what: str) -> bool:
    if cleaned.startswith("~"):
        raise InputError(f"the {what} {_shown(name)} starts with '~', which is not followed; write the whole path")
    if cleaned.startswith(("//?/", "//./")):
        raise InputError(f"the {what} {_shown(name)} is a device path, which is not allowed; write an ordinary path")
    if _ON_WINDOWS:
        if _DRIVE.match(cleaned) and not cleaned[2:].startswith("/"):
            raise InputError(f"the {what} {_shown(name)} names a drive without a '\\' after it; write the whole path")
        return bool(_DRIVE.match(cleaned)) or cleaned.startswith("/")
    if _DRIVE.match(cleaned) or cleaned.startswith("//"):
        raise InputError(
            f"the {what} {_shown(name)} is a Windows path and this machine is not Windows; name a folder below the "
            "allowed folders"
        )
    return cleaned.startswith("/")


def _check_parts(cleaned: str, name: str, what: str, *, new: bool) -> None:
    rest = _DRIVE.sub("", cleaned)
    for part in rest.split("/"):
        stripped = part.rstrip(". ")
        if part == ".." or (part and not stripped and part != "."):
            raise InputError(f"the {what} {_shown(name)} climbs out with {part!r}; write the path without it")
        if ":" in part:
            raise InputError(f"the {what} {_shown(name)} holds a ':', which is not allowed in a name; take it out")
        if is_reserved_name(part):
            raise InputError(f"the {what} {_shown(name)} uses {part!r}, a reserved name on Windows; rename it")
        if new and (_FORBIDDEN_IN_NEW_NAMES.search(part) or (part not in ("", ".") and part != stripped)):
            raise InputError(
                f'the {what} {_shown(name)} cannot be a name on Windows: leave out < > " | ? * and a dot or space at '
                "the end"
            )


def _lies_below(cleaned: str, roots: Sequence[Path]) -> bool:
    """Tells by the letters alone whether a Windows path lies below a root, or below where a root really lies.

    On Windows even a look at ``//server/share`` or at a network drive sends the user's credentials to that server,
    so this comes before anything that touches the path.
    """
    given = PureWindowsPath(cleaned)
    return any(given.is_relative_to(PureWindowsPath(place)) for root in roots for place in (root, _real(root)))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _nearest_hint(cleaned: str, roots: Sequence[Path]) -> str:
    first = cleaned.strip("/").split("/")[0]
    names: list[str] = []
    for root in roots:
        if root.is_dir():
            with os.scandir(root) as entries:
                names += [entry.name for _, entry in zip(range(1000), entries, strict=False)]
    nearest = [near for near in nearest_names(first, names) if near != first]
    return f"; did you mean {' or '.join(repr(near) for near in nearest)}?" if nearest else ""


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
