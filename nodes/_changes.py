"""Cheap fingerprints for ``IS_CHANGED``: they change when a file does, and are never NaN (which means "always")."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..core.errors import AtelierError


def file_state(path: Path) -> str:
    """Size and time of a file."""
    if not path.exists():
        return "absent"
    facts = path.stat()
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def named_file_state(find: Callable[[str], Path], name: str | None) -> str:
    """State of the file a widget names; the refusal's own text when there is none (it comes again when the node runs).

    Args:
        find: Gives the path of a name.
        name: The widget's value, None when it is wired and not known yet.
    """
    if name is None:
        return "wired"
    try:
        path = find(name)
    except AtelierError as refusal:
        return str(refusal)
    if not path.is_dir():
        return file_state(path)
    return " ".join(f"{part.name} {file_state(part)}" for part in sorted(path.iterdir()))
