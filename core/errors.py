"""The one family of exceptions: every message says what was given, what is allowed and what to do."""

import difflib
from collections.abc import Iterable

_MAX_LISTED_NAMES = 12


class AtelierError(ValueError):
    """Anything the pack refuses to do; the message is one sentence meant for the person at the graph."""


class InputError(AtelierError):
    """A value that a person gave: a widget, a file name, a command-line option."""


class UnknownNameError(InputError):
    """A name that is not among the allowed ones."""


class FormatError(AtelierError):
    """A file whose content is not what it should be."""


class StorageError(AtelierError):
    """The disk: no space, no permission, outside the allowed folders, gone."""


class MissingLibraryError(AtelierError):
    """An optional library is not installed; the message holds the exact command that installs it."""


class TrainingError(AtelierError):
    """A training run that cannot go on: non-finite losses, tensors that stayed zero."""


def nearest_names(given: str, allowed: Iterable[str], max_names: int = 3) -> list[str]:
    """Returns the allowed names most like the given one, best first, whatever the case of their letters."""
    by_lower: dict[str, str] = {}
    for name in allowed:
        by_lower.setdefault(name.lower(), name)
    matches = difflib.get_close_matches(given.lower(), list(by_lower), n=max_names, cutoff=0.5)
    return [by_lower[match] for match in matches]


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
    """Builds (does not raise) the error for a name that is not among the allowed ones.

    Args:
        kind: What the name names, in the reader's words, e.g. ``"optimizer"``.
        given: The name as it was given.
        allowed: Every name that would have been accepted.

    Returns:
        The error; its text lists the nearest names and the allowed ones (shortened when there are many).
    """
    names = list(allowed)
    if not names:
        return UnknownNameError(f"unknown {kind} {given!r}: there is none to choose from")
    nearest = nearest_names(given, names)
    hint = f"; did you mean {' or '.join(repr(name) for name in nearest)}?" if nearest else ""
    listed = ", ".join(names[:_MAX_LISTED_NAMES])
    more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
    return UnknownNameError(f"unknown {kind} {given!r}{hint} (allowed: {listed}{more})")


def missing_library(library: str, purpose: str, command: str) -> MissingLibraryError:
    """Builds (does not raise) the error for an optional library that is not installed.

    Args:
        library: The library's import name.
        purpose: What it is needed for.
        command: The exact command that installs it.
    """
    return MissingLibraryError(f"{purpose} needs the library {library!r}, which is not installed; run: {command}")
