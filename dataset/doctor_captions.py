"""Checks of the doctor that read caption files: several of one picture that do not say the same."""

import os
from collections.abc import Sequence
from pathlib import Path

from .doctor import WARNING, Check, Finding, Patient
from .normal import normals
from .sidecars import CAPTION_EXTENSIONS, BadCaption, parse_caption, read_caption
from .site_json import read_site_json

_MAX_LISTED = 12


def captions_that_differ(patient: Patient) -> Finding | None:
    """Pictures beside which two caption files, or one and a saved JSON, hold different tags."""
    rows: list[int] = []
    details: list[str] = []
    listed: dict[str, frozenset[str]] = {}
    for row in range(len(patient.dataset)):
        path = patient.dataset.path(row)
        folder = str(path.parent)
        if folder not in listed:
            patient.progress.check()
            listed[folder] = _captions_in(folder)
        names = [name for ending in (*CAPTION_EXTENSIONS, ".json") if (name := path.stem + ending) in listed[folder]]
        if len(names) < 2:
            continue
        found = {name: tags for name in names if (tags := _tags_in(path.with_name(name))) is not None}
        if len({tuple(normals(tuple(tags))) for tags in found.values()}) > 1:
            rows.append(row)
            told = ", ".join(f"{name} {len(tags)} tags" for name, tags in found.items())
            details += [f"{patient.shown(row)}: {told}"] if len(details) < _MAX_LISTED else []
    if not rows:
        return None
    advice = (
        "Of a saved .json and a caption file the one written last is read here, of .txt and .caption the one asked "
        "for, else the .txt; kohya's scripts read only the .txt. Delete the one you do not want, or save in both forms."
    )
    return patient.finding("captions_differ", WARNING, "Two captions that differ", rows, advice, details=details)


def _captions_in(folder: str) -> frozenset[str]:
    """Names of the caption files of a folder; none where it cannot be listed, which opening it has told."""
    endings = (*CAPTION_EXTENSIONS, ".json")
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.name.endswith(endings))
    except OSError:
        return frozenset()


def _tags_in(path: Path) -> Sequence[str] | None:
    """The tags of a caption file; None where it is none, or what a site says."""
    try:
        if path.suffix == ".json":
            record = read_site_json(path)
            return record.tags if record is not None and record.is_own else None
        return parse_caption(read_caption(path), name=path.name).tags
    except BadCaption:
        return None


CAPTION_CHECKS = (Check(name="captions_differ", looks_for="caption files that differ", run=captions_that_differ),)
